#!/usr/bin/env python3
"""Load on `slit serve`: throughput and latency by clients, and what it survives.

Starts the server as a process of its own, lets 1, 8, 16 and 64 clients ask for captions
of clips of their own, then sends bad uploads, clients that go away, and SIGTERM while
requests wait.

    python bench/serve.py --model exp/mini_instruction --output serve.json

Memory is the server's, MiB (while it soaks, what it has allocated, as in soak.py);
latency is a client's, seconds.
"""

import argparse
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import soundfile
from alternate import machine
from soak import look, verdict

RATE = 16000
MEMORY_LIMIT = 30  # MiB an hour above which memory counts as growing


def get_parser():
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="system that captions")
    parser.add_argument("--output", help="JSON of all figures")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 16, 64])
    parser.add_argument("--requests", type=int, default=64, help="by all clients")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a clip")
    parser.add_argument("--bad", type=int, default=1000, help="uploads of no audio")
    parser.add_argument("--soak_minutes", type=float, default=0, help="16 clients")
    parser.add_argument("--num_beams", type=int, default=5)
    parser.add_argument("--max_new_tokens", type=int, default=40)
    return parser


def make_clips(count, seconds):
    """WAV files as bytes: a tone of its own with noise, of like length."""
    clips = []
    for i in range(count):
        random = np.random.default_rng(i)
        time_s = np.arange(int(RATE * (seconds + 0.02 * (i % 8)))) / RATE
        audio = 0.3 * np.sin(2 * np.pi * (150 + 40 * i) * time_s)
        audio += 0.05 * random.standard_normal(len(time_s))
        stream = io.BytesIO()
        soundfile.write(stream, audio, RATE, format="WAV")
        clips.append(stream.getvalue())
    return clips


class Server:
    """`slit serve` as a process on a free port of this machine.

    Args:
        args: of the command line.
    """

    def __init__(self, args):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        # One for all threads: making a client takes longer than a tiny caption.
        limits = httpx.Limits(max_connections=None)
        self.client = httpx.Client(timeout=600, limits=limits)
        self.fields = {
            "num_beams": args.num_beams,
            "max_new_tokens": args.max_new_tokens,
        }
        command = [sys.executable, "-m", "espnet2_slit.bin.slit", "serve"]
        command += ["--model", args.model, "--port", str(self.port)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while True:
            if self.process.poll() is not None:
                raise SystemExit("the server has ended; run slit serve to see why")
            try:
                self.client.get(f"{self.url}/health")
                return
            except httpx.TransportError:
                time.sleep(0.2)

    def caption(self, clip):
        """(status, seconds, caption)."""
        started = time.monotonic()
        files = {"audio": ("clip.wav", clip)}
        found = self.client.post(f"{self.url}/caption", data=self.fields, files=files)
        return found.status_code, time.monotonic() - started, found.text

    def memory_mib(self):
        """Resident memory of the server."""
        return round(psutil.Process(self.process.pid).memory_info().rss / 2**20)


def load(server, clips, clients):
    """Figures of so many clients that each wait for their answer."""
    started = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(server.caption, clips))
    seconds = time.monotonic() - started
    latencies = [latency for _, latency, _ in found]
    return {
        "captions_per_second": round(len(clips) / seconds, 2),
        "latency_median_s": round(float(np.median(latencies)), 3),
        "latency_95_percent_s": round(float(np.quantile(latencies, 0.95)), 3),
        "served": sum(status == 200 for status, *_ in found),
        "asked": len(clips),
    }, [text for *_, text in found]


def abuse(server, count):
    """Uploads that are no audio, and clients that go away."""
    random = np.random.default_rng(0)

    def bad(i):
        content = random.bytes(int(random.integers(0, 2000)))
        content = (b"", b"RIFF", b"fLaC", b"OggS")[i % 4] + content
        files = {"audio": ("x.wav", content)}
        return server.client.post(f"{server.url}/caption", files=files).status_code

    before = server.memory_mib()
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(bad, range(count)))
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"POST /caption HTTP/1.1\r\nHost: x\r\nContent-Le")
    return {
        "bad_uploads": count,
        "refused_with_4xx": sum(400 <= status < 500 for status in statuses),
        "memory_before_mib": before,
        "memory_after_mib": server.memory_mib(),
    }


def soak(server, clips, minutes):
    """What the server holds while 16 clients ask for some minutes, by the minute."""
    process, begin, samples = psutil.Process(server.process.pid), time.monotonic(), []
    while (now := time.monotonic() - begin) < 60 * minutes:
        samples.append({"s": now, **look(process)})
        load(server, clips, 16)
    curve = {}
    for sample in samples:
        curve.setdefault(int(sample["s"] // 60), []).append(sample["memory_mib"])
    warm_up_s = min(180, 12 * minutes)
    return {
        "minutes": minutes,
        "served": len(clips) * len(samples),
        **verdict(samples, warm_up_s, MEMORY_LIMIT),
        "highest_mib_by_minute": [round(max(row), 1) for row in curve.values()],
    }


def stop(server, clips):
    """SIGTERM while requests wait: how many are answered."""
    with ThreadPoolExecutor(len(clips)) as pool:
        futures = [pool.submit(server.caption, clip) for clip in clips]
        while server.client.get(f"{server.url}/health").json()["waiting"] == 0:
            if all(future.done() for future in futures):
                break
        server.process.send_signal(signal.SIGTERM)
        found = [future.result()[0] for future in futures]
    server.process.wait(60)
    return {"asked": len(found), "served": found.count(200)}


def main(cmd=None):
    """Run all parts and write what was found."""
    args = get_parser().parse_args(cmd)
    content = {"machine": machine("cpu"), "model": os.path.basename(args.model)}
    clips = make_clips(args.requests, args.seconds)
    server = Server(args)
    try:
        load(server, clips[:8], 4)  # first calls load and compile
        texts = {}
        for clients in args.clients:
            content[f"{clients} clients"], texts[clients] = load(server, clips, clients)
            print(f"{clients:>3} clients: {content[f'{clients} clients']}", flush=True)
        first = texts[args.clients[0]]
        equal = all(found == first for found in texts.values())
        content["equal_to_single_calls"] = equal
        print(f"texts equal for all numbers of clients: {equal}")
        if args.soak_minutes:
            content["soak"] = soak(server, clips, args.soak_minutes)
            print(f"soak: {content['soak']}")
        content["abuse"] = abuse(server, args.bad)
        print(f"abuse: {content['abuse']}")
        content["after"], _ = load(server, clips[:8], 8)
        content["stop"] = stop(server, clips[:16])
        print(f"SIGTERM while 16 wait: {content['stop']}")
    finally:
        if server.process.poll() is None:
            server.process.kill()
    if args.output:
        Path(args.output).write_text(json.dumps(content, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
