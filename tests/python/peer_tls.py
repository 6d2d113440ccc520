"""What the scripts of this folder share: addresses, ready lines, and TLS contexts from files in the working folder."""

import argparse
import json
import ssl
import sys


def arguments(description):
    """A parser with the options of both sides; the names of certificates have no ending."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--certificate", help="name of the own certificate: NAME.crt and NAME.key")
    parser.add_argument("--authority", help="name of the certificate that the other side is verified with: NAME.crt")
    return parser


def read(name, ending):
    with open(f"{name}.{ending}", "rb") as file:
        return file.read()


def server_context(options):
    """None in clear text. With an authority, clients without a certificate of it are rejected."""
    if not options.certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{options.certificate}.crt", f"{options.certificate}.key")
    if options.authority:
        context.load_verify_locations(f"{options.authority}.crt")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(options):
    """None in clear text; the server is verified with the authority."""
    if not options.authority:
        return None
    context = ssl.create_default_context(cafile=f"{options.authority}.crt")
    if options.certificate:
        context.load_cert_chain(f"{options.certificate}.crt", f"{options.certificate}.key")
    return context


def common_name(certificate):
    """Of what `getpeercert` gives; None without a certificate."""
    for part in (certificate or {}).get("subject", ()):
        for name, value in part:
            if name == "commonName":
                return value
    return None


def ready(port):
    """The line that the test waits for."""
    print("ready " + json.dumps({"address": f"127.0.0.1:{port}"}), file=sys.stderr, flush=True)
