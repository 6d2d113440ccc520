"""A WebSocket server by the library `websockets`: it echoes messages.

The path selects more: `/who` first sends JSON about the connection (the certificate's common name, the path, the
request's fields); `/close` closes with code 4001 after the first message; `/abort` ends the TCP connection then; and
`/refuse` answers the handshake with 403. The subprotocols `chat` and `superchat` are spoken.
"""

import asyncio
import http
import json

from websockets.asyncio.server import serve

import peer_tls

SPOKEN = ("chat", "superchat")


async def handler(connection):
    path = connection.request.path.split("?")[0]
    if path == "/who":
        certificate = connection.transport.get_extra_info("peercert")
        who = {
            "client": peer_tls.common_name(certificate),
            "path": connection.request.path,
            "fields": {name.lower(): value for name, value in connection.request.headers.raw_items()},
            "subprotocol": connection.subprotocol,
        }
        await connection.send(json.dumps(who))
    async for message in connection:
        if path == "/close":
            await connection.close(4001, "as the path says")
        elif path == "/abort":
            connection.transport.abort()
        else:
            await connection.send(message)


def refuse(connection, request):
    if request.path == "/refuse":
        return connection.respond(http.HTTPStatus.FORBIDDEN, "refused by the upstream\n")
    return None


async def main():
    options = peer_tls.arguments(__doc__).parse_args()
    serving = serve(
        handler,
        "127.0.0.1",
        0,
        ssl=peer_tls.server_context(options),
        process_request=refuse,
        # A list of `subprotocols` would demand one of every client.
        select_subprotocol=lambda _, offered: next((name for name in offered if name in SPOKEN), None),
        max_size=None,
    )
    async with serving as server:
        peer_tls.ready(server.sockets[0].getsockname()[1])
        await server.serve_forever()


asyncio.run(main())
