"""Publishes KV cache events as vLLM does, with libzmq and msgspec: a batch every few milliseconds on a
PUB socket, and a ROUTER that replays. Prints both ports and ends when stdin does."""

import sys
import threading
import time
from collections import deque

import msgspec
import zmq


class Batch(msgspec.Struct, omit_defaults=True):
    ts: float
    events: list
    data_parallel_rank: int | None = None


class BlockStored(msgspec.Struct, omit_defaults=True, tag=True):
    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list | None = None


ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
context = zmq.Context()
publisher, replay = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
ports = [socket.bind_to_random_port("tcp://127.0.0.1") for socket in (publisher, replay)]
print(*ports, flush=True)
kept, number = deque(maxlen=10_000), 0
while not ended.is_set():
    tokens = [number * 16 + at for at in range(16)]
    stored = BlockStored([number.to_bytes(32, "big")], None, tokens, 16, None, "GPU", None)
    payload = msgspec.msgpack.encode(Batch(time.time(), [stored], 0))
    frames = number.to_bytes(8, "big"), payload
    publisher.send_multipart((b"kv@pod@model", *frames))
    kept.append(frames)
    number += 1
    if replay.poll(2):
        client, empty, start = replay.recv_multipart()
        for frames in kept:
            if frames[0] >= start:
                replay.send_multipart((client, empty, *frames))
        replay.send_multipart((client, empty, (-1).to_bytes(8, "big", signed=True), b""))
