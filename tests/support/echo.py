"""A WebSocket echo: `serve` prints its port and echoes; `ask HOST PORT CA N` sends N messages and wants them back."""

import asyncio
import ssl
import sys

import websockets


async def echo(socket, *_):
    async for message in socket:
        await socket.send(message)


async def serve():
    async with websockets.serve(echo, "127.0.0.1", 0) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()


async def ask(host, port, ca, count):
    context = ssl.create_default_context(cafile=ca)
    uri = f"wss://{host}:{port}/echo"
    async with websockets.connect(uri, host="127.0.0.1", port=port, ssl=context, server_hostname=host) as socket:
        async def send():
            for i in range(count):
                # Text and binary in turn, from a few bytes to several frames' worth.
                await socket.send(f"{i}:" + "x" * (i % 3000) if i % 2 else b"%d:" % i + bytes(i % 3000))

        sending = asyncio.create_task(send())
        for i in range(count):
            message = await socket.recv()
            expected = f"{i}:" + "x" * (i % 3000) if i % 2 else b"%d:" % i + bytes(i % 3000)
            if message != expected:
                sys.exit(f"message {i} came back as {message[:40]!r}")
        await sending
    print(f"{count} echoed")


if sys.argv[1] == "serve":
    asyncio.run(serve())
else:
    asyncio.run(ask(sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])))
