"""Calls a node over many fresh connections, each used once: address, count, then CA, certificate and key for TLS."""

import sys

import grpc

address, count, *files = sys.argv[1:]
read = lambda path: open(path, "rb").read()
credentials = None
if files:
    ca, *own = files
    chain, key = (read(own[0]), read(own[1])) if own else (None, None)
    credentials = grpc.ssl_channel_credentials(read(ca), key, chain)

# GetRequest { context_id: "c" }
REQUEST = b"\x0a\x01c"
failed = []
for number in range(int(count)):
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = (
        grpc.secure_channel(address, credentials, options)
        if credentials
        else grpc.insecure_channel(address, options)
    )
    with channel:
        call = channel.unary_unary("/converge.context.v1.ContextService/Get")
        try:
            call(REQUEST, timeout=20)
        except grpc.RpcError as error:
            failed.append(f"connection {number}: {error.code()} {error.details()}")
if failed:
    sys.exit(f"{len(failed)} of {count} calls were not answered:\n" + "\n".join(failed[:10]))
