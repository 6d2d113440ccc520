"""A WebSocket client by the library `websockets`, which prints a JSON line for each step.

`websocket_client.py ADDRESS --host NAME --path PATH [--subprotocol NAME]... [--compression] STEP...`. Steps: `send:TEXT`;
`bytes:N` sends N bytes and expects the same back; `receive`; `ping` waits for the pong; `close` closes with 1000;
`ended` waits for the other side's close. The first line tells whether the handshake succeeded; when it did not, it
has the status and the text, and no step is made.
"""

import json
import socket

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import peer_tls

# Seconds for each step.
LIMIT = 50


def step(connection, name):
    word, _, argument = name.partition(":")
    match word:
        case "send":
            connection.send(argument)
        case "bytes":
            sent = bytes(index % 251 for index in range(int(argument)))
            connection.send(sent)
            return connection.recv(timeout=LIMIT) == sent
        case "receive":
            return connection.recv(timeout=LIMIT)
        case "ping":
            return connection.ping().wait(LIMIT)
        case "close":
            connection.close()
        case "ended":
            connection.recv(timeout=LIMIT)
        case _:
            raise ValueError(name)
    return None


def main():
    parser = peer_tls.arguments(__doc__)
    parser.add_argument("address")
    parser.add_argument("--host", required=True)
    parser.add_argument("--path", default="/")
    parser.add_argument("--subprotocol", action="append")
    parser.add_argument("--compression", action="store_true")
    parser.add_argument("steps", nargs="*")
    options = parser.parse_intermixed_args()
    context = peer_tls.client_context(options)
    scheme = "wss" if context else "ws"
    host, port = options.address.split(":")
    try:
        connection = connect(
            f"{scheme}://{options.host}{options.path}",
            sock=socket.create_connection((host, int(port))),
            ssl=context,
            subprotocols=options.subprotocol,
            compression="deflate" if options.compression else None,
            max_size=None,
        )
    except InvalidStatus as error:
        answer = error.response
        print(json.dumps({"open": False, "status": answer.status_code, "text": answer.body.decode()}))
        return
    extensions = [extension.name for extension in connection.protocol.extensions]
    print(json.dumps({"open": True, "subprotocol": connection.subprotocol, "extensions": extensions}), flush=True)
    for name in options.steps:
        try:
            line = {"step": name, "result": step(connection, name)}
        except ConnectionClosed as error:
            line = {"step": name, "closed": error.rcvd.code if error.rcvd else None}
        print(json.dumps(line), flush=True)


main()
