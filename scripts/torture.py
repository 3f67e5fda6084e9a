#!/usr/bin/env python3
"""torture.py WEFT [ROUNDS] [SEED]: kills jobs, again and again, and looks at what is left.

Each round starts a job, ends it at a random moment with SIGKILL or SIGTERM, starts the same command again, ends that as well, and so on; the last one may
finish. After every kill the destination must be as it was or complete, byte for byte; after the last nothing may be left over. A process that gets SIGTERM
has to end within two seconds, with exit status 1 (or 0, when it was done).
"""

import hashlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time


def write_model(folder, seed):
    """A model of some 24 MB: one large tensor and many small ones, finite bf16 values."""
    os.makedirs(folder)
    rng = random.Random(seed)
    small = bytes(b & 0x3F for b in range(256))
    header, payload = {"__metadata__": {"format": "pt"}}, []
    at = 0
    for i in range(40):
        rows = 4096 if i == 7 else 256
        data = rng.randbytes(rows * 1024 * 2).translate(small)
        header[f"part_{i:02}.weight"] = {"dtype": "BF16", "shape": [rows, 1024], "data_offsets": [at, at + len(data)]}
        at += len(data)
        payload.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(payload))
    with open(os.path.join(folder, "config.json"), "w") as file:
        file.write('{"architectures": ["Unknown"]}')


def contents(path):
    """Every file at or below a path, with a digest of its bytes."""
    if os.path.isfile(path):
        return {"": hashlib.blake2b(open(path, "rb").read()).hexdigest()}
    found = {}
    for folder, _, names in os.walk(path):
        for name in names:
            full = os.path.join(folder, name)
            found[os.path.relpath(full, path)] = hashlib.blake2b(open(full, "rb").read()).hexdigest()
    return found


class Job:
    def __init__(self, name, arguments, output, old):
        self.name, self.arguments, self.output, self.old = name, arguments, output, old


def main():
    weft = os.path.abspath(sys.argv[1])
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(1 << 32)
    rng = random.Random(seed)
    print(f"seed {seed}")
    failures = []
    kills = resumed = finished = 0

    with tempfile.TemporaryDirectory(prefix="weft-torture-") as work:
        for i, name in enumerate(("x", "y")):
            write_model(os.path.join(work, name), i)
        configs = {}
        for method in ("linear", "ties"):
            configs[method] = os.path.join(work, method + ".yml")
            with open(configs[method], "w") as file:
                file.write(f"merge_method: {method}\nbase_model: {work}/x\nmodels: [{{model: {work}/x}}, {{model: {work}/y}}]\n"
                           "parameters: {weight: 0.5, density: 0.5}\ndtype: bfloat16\n")
        out = os.path.join(work, "place", "out")
        every = ["--journal-every", "1MB", "--json", "--quiet"]
        jobs = [
            Job("merge linear", ["merge", configs["linear"], out, "--max-shard-size", "4MB"], out, False),
            Job("merge ties over an old model", ["merge", configs["ties"], out, "--force"], out, True),
            Job("convert", ["convert", work + "/x", out, "--dtype", "float32", "--max-shard-size", "10MB"], out, False),
            Job("convert to a file", ["convert", work + "/x", out + ".safetensors", "--dtype", "float16"], out + ".safetensors", False),
        ]

        def start(job):
            return subprocess.Popen([weft, *job.arguments, *every], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=work)

        def prepare(job):
            shutil.rmtree(os.path.dirname(out), ignore_errors=True)
            os.makedirs(os.path.dirname(out))
            if job.old:
                os.makedirs(out)
                for name in ("config.json", "model.safetensors", "other.txt"):
                    with open(os.path.join(out, name), "w") as file:
                        file.write("old " + name)

        for job in jobs:
            prepare(job)
            begin = time.monotonic()
            process = start(job)
            _, error = process.communicate()
            if process.returncode != 0:
                sys.exit(f"{job.name} fails without being killed: {error.decode()}")
            job.seconds = time.monotonic() - begin
            job.complete = contents(job.output)
            prepare(job)
            job.before = contents(job.output)

        for number in range(rounds):
            job = jobs[number % len(jobs)]
            prepare(job)
            where = f"round {number} ({job.name})"
            for attempt in range(rng.choice((1, 1, 2, 3))):
                process = start(job)
                time.sleep(rng.uniform(0, 1.1 * job.seconds))
                how = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
                begin = time.monotonic()
                process.send_signal(how)
                try:
                    process.communicate(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                took = time.monotonic() - begin
                kills += 1
                # Before the program has come to its first line the signal ends it, too.
                if how == signal.SIGTERM and (took > 2 or process.returncode not in (0, 1, 2, -signal.SIGTERM)):
                    failures.append(f"{where}: after SIGTERM it took {took:.2f} s to end, with {process.returncode}")
                now = contents(job.output)
                if now not in (job.before, job.complete):
                    failures.append(f"{where}: neither old nor new after kill {attempt}")
                if now == job.complete:
                    break
            process = start(job)
            text, error = process.communicate()
            if contents(job.output) != job.complete:
                failures.append(f"{where}: the result is not that of an undisturbed run; exit {process.returncode}, {error.decode()}")
            # With --force it has been done twice; without, "exists" is the answer when the kill came too late.
            if process.returncode not in (0, 2) or (process.returncode == 2 and b"exists" not in text):
                failures.append(f"{where}: the last run ended with {process.returncode}: {error.decode()}")
            left = [name for name in os.listdir(os.path.dirname(out)) if name.startswith(".")]
            if left:
                failures.append(f"{where}: left over: {left}")
            finished += 1
            try:
                resumed += json.loads(text).get("details", {}).get("bytes_resumed", 0) > 0
            except (ValueError, AttributeError):
                pass
            if failures and len(failures) > 10:
                break

    for failure in failures:
        print("FAILED " + failure)
    print(f"{finished} jobs, {kills} kills, {resumed} went on where another had stopped, {len(failures)} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
