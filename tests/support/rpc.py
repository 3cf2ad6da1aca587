"""gRPC with grpcio, without generated code: `serve` prints its port; `ask HOST PORT CA` runs every kind of call."""

import sys
import threading
import time
from concurrent import futures

import grpc

SERVICE = "tide.Test"
CANCELLED = threading.Event()


def unary(request, context):
    metadata = dict(context.invocation_metadata())
    if request == b"metadata":
        context.send_initial_metadata((("x-initial", "1"),))
        context.set_trailing_metadata((("x-trailing", "2"), ("x-bin-bin", b"\x00\xff")))
        return metadata.get("x-asked", "").encode()
    if request == b"fail":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no, 100% no")
    if request == b"deadline":
        return str(int(context.time_remaining() * 1000)).encode()
    if request == b"slow":
        time.sleep(3)
    if request == b"cancelled?":
        return b"yes" if CANCELLED.wait(30) else b"no"
    return request


def download(request, context):
    if request == b"endless":
        context.add_callback(CANCELLED.set)
        while context.is_active():
            yield b"x" * 1000
        return
    for i in range(int(request)):
        yield b"%d:" % i + b"x" * (i % 5000)


def upload(requests, context):
    total = 0
    for request in requests:
        total += len(request)
    return str(total).encode()


def both(requests, context):
    for request in requests:
        yield request[::-1]


def serve():
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Download": grpc.unary_stream_rpc_method_handler(download),
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
        "Both": grpc.stream_stream_rpc_method_handler(both),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


def channel(host, port, ca):
    credentials = grpc.ssl_channel_credentials(open(ca, "rb").read())
    options = (("grpc.ssl_target_name_override", host), ("grpc.default_authority", host))
    return grpc.secure_channel(f"127.0.0.1:{port}", credentials, options)


def failure(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""


def ask(host, port, ca):
    with channel(host, port, ca) as connection:
        unary = connection.unary_unary(f"/{SERVICE}/Unary")
        download = connection.unary_stream(f"/{SERVICE}/Download")
        upload = connection.stream_unary(f"/{SERVICE}/Upload")
        both = connection.stream_stream(f"/{SERVICE}/Both")

        assert unary(b"hello", timeout=60) == b"hello"
        big = b"x" * 3_000_000
        assert unary(big, timeout=60) == big
        answer, call = unary.with_call(b"metadata", timeout=60, metadata=(("x-asked", "here"),))
        assert answer == b"here", answer
        assert ("x-initial", "1") in call.initial_metadata()
        assert ("x-trailing", "2") in call.trailing_metadata()
        assert ("x-bin-bin", b"\x00\xff") in call.trailing_metadata()
        print("unary")

        remaining = int(unary(b"deadline", timeout=40))
        # The client rounds what it sends up a little.
        assert 20_000 < remaining < 42_000, remaining
        assert failure(lambda: unary(b"slow", timeout=1))[0] == "DEADLINE_EXCEEDED"
        print("deadlines")

        assert failure(lambda: unary(b"fail", timeout=60)) == ("FAILED_PRECONDITION", "no, 100% no")
        assert failure(lambda: connection.unary_unary(f"/{SERVICE}/Nothing")(b"", timeout=60))[0] == "UNIMPLEMENTED"
        print("errors")

        received = list(download(b"300", timeout=60))
        assert received == [b"%d:" % i + b"x" * (i % 5000) for i in range(300)]
        sent = [b"y" * (i % 3000) for i in range(300)]
        assert upload(iter(sent), timeout=60) == str(sum(map(len, sent))).encode()
        print("streams")

        # Each message is sent only when the answer to the one before has come: nothing may be held back on the way.
        turn = threading.Semaphore(1)

        def messages():
            for i in range(50):
                turn.acquire()
                yield b"%d-" % i

        for i, answer in enumerate(both(messages(), timeout=60)):
            assert answer == (b"%d-" % i)[::-1], answer
            turn.release()
        print("both ways")

        call = download(b"endless", timeout=60)
        next(call)
        call.cancel()
        assert unary(b"cancelled?", timeout=60) == b"yes"
        print("cancelled")


def status(host, port, ca):
    with channel(host, port, ca) as connection:
        code, details = failure(lambda: connection.unary_unary(f"/{SERVICE}/Unary")(b"hello", timeout=60))
        print(f"{code}: {details}")


if sys.argv[1] == "serve":
    serve()
elif sys.argv[1] == "ask":
    ask(*sys.argv[2:])
else:
    status(*sys.argv[2:])
