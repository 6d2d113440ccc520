"""Calls methods of `grpc_echo.py` over one channel and prints a JSON line for each call.

`grpc_client.py ADDRESS --host NAME CALL...`; a call is a JSON object: `method`; `messages`, texts that are sent;
or `sizes`, messages of so many bytes; `metadata`; `timeout` in seconds. The line has `code`, `details`, `messages` (as
texts, or their sizes beyond 100 bytes), `initial` and `trailing` metadata and `seconds`.
"""

import json
import time

import grpc

import peer_tls

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def channel(options):
    if not options.authority:
        return grpc.insecure_channel(options.address, UNLIMITED + [("grpc.default_authority", options.host)])
    key = certificate = None
    if options.certificate:
        key, certificate = peer_tls.read(options.certificate, "key"), peer_tls.read(options.certificate, "crt")
    credentials = grpc.ssl_channel_credentials(peer_tls.read(options.authority, "crt"), key, certificate)
    named = [("grpc.ssl_target_name_override", options.host), ("grpc.default_authority", options.host)]
    return grpc.secure_channel(options.address, credentials, UNLIMITED + named)


def shown(message):
    return message.decode("latin-1") if len(message) <= 100 else len(message)


def listed(metadata):
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in metadata or ()}


def start(opened, call, messages):
    path = f"/echo.Echo/{call['method']}"
    metadata = tuple(call.get("metadata", {}).items())
    rest = {"timeout": call.get("timeout"), "metadata": metadata}
    match call["method"]:
        case "Count":
            return opened.unary_stream(path)(messages[0], **rest)
        case "Collect":
            return opened.stream_unary(path).future(iter(messages), **rest)
        case "Chat":
            return opened.stream_stream(path)(iter(messages), **rest)
        case _:
            return opened.unary_unary(path).future(messages[0], **rest)


def run(opened, call):
    messages = [text.encode() for text in call.get("messages", [])]
    messages += [b"x" * size for size in call.get("sizes", [])]
    answered = []
    began = time.monotonic()
    running = start(opened, call, messages)
    try:
        if call["method"] in ("Count", "Chat"):
            answered.extend(running)
        else:
            answered.append(running.result())
    except grpc.RpcError:
        # Its status is read below.
        pass
    return {
        "code": running.code().name,
        "details": running.details(),
        "messages": [shown(message) for message in answered],
        "initial": listed(running.initial_metadata()),
        "trailing": listed(running.trailing_metadata()),
        "seconds": time.monotonic() - began,
    }


def main():
    parser = peer_tls.arguments(__doc__)
    parser.add_argument("address")
    parser.add_argument("--host", required=True)
    parser.add_argument("calls", nargs="+", type=json.loads)
    options = parser.parse_intermixed_args()
    with channel(options) as opened:
        for call in options.calls:
            print(json.dumps(run(opened, call)), flush=True)


main()
