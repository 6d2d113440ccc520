"""A gRPC server of the service `echo.Echo`, whose messages are bytes: no protobuf.

Unary echoes; Collect answers "COUNT BYTES" of all that it got; Count answers each number below its request; Chat
echoes each message when it arrives. Request metadata `x-*` come back as initial metadata, and so does the common name
of the client's certificate as `x-client`. More of them select what happens: `x-status` and `x-message` end the call
with this status, `x-delay` waits so many seconds first, `x-bytes` is the size of Unary's answer.
"""

import time
from concurrent import futures

import grpc

import peer_tls

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def begin(context):
    """Sends the initial metadata; gives those of the request."""
    sent = context.invocation_metadata()
    metadata = dict(sent)
    names = context.auth_context().get("x509_common_name", [])
    echoed = [(name, value) for name, value in sent if name.startswith("x-")]
    context.send_initial_metadata(echoed + [("x-client", name.decode()) for name in names])
    context.set_trailing_metadata([("x-trailing", "yes"), ("x-trailing-bin", bytes(range(256)))])
    time.sleep(float(metadata.get("x-delay", "0")))
    if "x-status" in metadata:
        code = next(code for code in grpc.StatusCode if code.value[0] == int(metadata["x-status"]))
        context.abort(code, metadata.get("x-message", ""))
    return metadata


def unary(request, context):
    metadata = begin(context)
    return b"x" * int(metadata["x-bytes"]) if "x-bytes" in metadata else request


def collect(requests, context):
    begin(context)
    sizes = [len(request) for request in requests]
    return b"%d %d" % (len(sizes), sum(sizes))


def count(request, context):
    begin(context)
    for number in range(int(request)):
        yield b"%d" % number


def chat(requests, context):
    begin(context)
    yield from requests


def main():
    options = peer_tls.arguments(__doc__).parse_args()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64), options=UNLIMITED)
    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Collect": grpc.stream_unary_rpc_method_handler(collect),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo.Echo", methods),))
    if options.certificate:
        pair = (peer_tls.read(options.certificate, "key"), peer_tls.read(options.certificate, "crt"))
        clients = peer_tls.read(options.authority, "crt") if options.authority else None
        credentials = grpc.ssl_server_credentials([pair], clients, require_client_auth=clients is not None)
        port = server.add_secure_port("127.0.0.1:0", credentials)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    peer_tls.ready(port)
    server.wait_for_termination()


main()
