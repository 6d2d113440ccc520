"""Drives the Admin API at the URL of the first argument with apisix-client, the key in the second.

Prints `done` at the end; every difference from what an APISIX does is an assertion.
"""

import sys

from apisix_client import ApisixClient
from apisix_client.common import Pagging
from apisix_client.consumer import Consumer
from apisix_client.route.models import Route
from apisix_client.service.models import Service
from apisix_client.upstream.models import Node, Upstream

url, key = sys.argv[1:3]
client = ApisixClient(url, key)

NODES = [Node(host="127.0.0.1", port=1980, weight=1)]
OBJECTS = {
    "upstream": (client.upstream, lambda name: Upstream(name=name, nodes=NODES)),
    "service": (client.service, lambda name: Service(name=name, upstream_id="kept")),
    "route": (client.route, lambda name: Route(name=name, uri="/a", service_id="kept")),
}

for kind, (calls, make) in OBJECTS.items():
    assert calls.count() == 0, kind
    assert calls.create_or_update(make("kept"), "kept") == "kept", kind
    generated = calls.create_with_id_generation(make("generated"))
    assert generated, kind
    assert calls.create_or_update(make("renamed"), generated) == generated, kind
    assert calls.get(generated).value.name == "renamed", kind
    names = [found.value.name for found in calls.get_all()]
    assert sorted(names) == ["kept", "renamed"], names
    page = calls.get_all(Pagging(page=1, page_size=10))
    assert [found.value.name for found in page] == ["kept", "renamed"], page
    assert calls.count() == 2, kind
    assert calls.delete(generated), kind
    assert calls.get(generated) is None and not calls.delete(generated), kind

# What others refer to stays; after them it goes.
assert client.service.delete("kept") is False and client.service.get("kept") is not None
for kind in ("route", "service", "upstream"):
    assert OBJECTS[kind][0].delete("kept"), kind

assert client.consumer.get_all() == () and client.consumer.count() == 0
assert client.consumer.get("jack") is None and client.consumer.delete("jack") == 0
assert client.consumer.create_or_update(Consumer(username="jack")) is False

plugins = client.plugin.get_available()
assert "proxy-rewrite" in plugins and "prometheus" in plugins, plugins
assert client.plugin.reload() is True

# For the other kinds the client has classes whose methods raise NotImplementedError: it cannot show
# a certificate of any APISIX. Its connection, base URL and key do.
connection = client._httpx_client
for kind in (
    "ssls", "stream_routes", "plugin_configs", "global_rules", "consumers", "consumer_groups", "protos",
    "secrets", "plugin_metadata",
):  # fmt: skip
    found = connection.get(f"/{kind}")
    assert found.status_code == 200 and found.json() == {"list": [], "total": 0}, (kind, found.text)
certificate, private_key = (open(path).read() for path in sys.argv[3:5])
written = connection.put("/ssls/1", json={"cert": certificate, "key": private_key, "snis": ["a.test"]})
assert written.status_code == 201, written.text
shown = connection.get("/ssls/1").json()["value"]
assert shown["cert"] == certificate and "key" not in shown, shown
assert connection.get("/ssls").json()["total"] == 1

print("done")
