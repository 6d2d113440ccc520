"""Checks manifests against the schemas of Kubernetes, and a chart with Helm's own library.

    kubernetes_check.py manifests FILE...
    kubernetes_check.py chart FOLDER VALUES      VALUES as JSON; the chart must render

Prints each document as a line of JSON."""

import json
import sys

import kubernetes_validate
import yaml


def show(text, origin):
    for document in yaml.safe_load_all(text):
        if document is None:
            continue
        try:
            kubernetes_validate.validate(document, "1.37", strict=True)
        except kubernetes_validate.ValidationError as error:
            sys.exit(f"{origin}: {document.get('kind')}: {error}")
        print(json.dumps(document))


if sys.argv[1] == "manifests":
    for path in sys.argv[2:]:
        with open(path, encoding="utf-8") as file:
            show(file.read(), path)
else:
    from helm_python import chart
    from helm_python.errors import HelmError

    folder, values = sys.argv[2], json.loads(sys.argv[3])
    with chart.Chart.load(folder) as loaded:
        try:
            rendered = loaded.render(values, name="test", namespace="default")
        except HelmError as error:
            sys.exit(str(error))
    report = chart.lint(folder, values, strict=True)
    findings = [message for message in report["messages"] if message["severity"] > 1] + report["errors"]
    if findings:
        sys.exit(f"lint: {findings}")
    for name, text in sorted(rendered.items()):
        show(text, name)
