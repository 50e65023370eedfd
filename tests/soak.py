"""A long training that is killed every few minutes and resumed; prints what it used and what came of it. Not a part of the test run.

Example: python tests/soak.py --data fashion-mnist --steps 20000 --out runs/soak"""
import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

from cebm_nb.storage import load_weights

BIN = Path(sys.executable).parent


def resident(pid):  # MiB
    try: return int(next(line for line in Path(f'/proc/{pid}/status').read_text().splitlines() if line.startswith('VmRSS')).split()[1]) / 1024
    except (OSError, StopIteration): return None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', default='fashion-mnist')
    parser.add_argument('--model', default='cebm')
    parser.add_argument('--steps', default='20000', help='parameter updates in all')
    parser.add_argument('--every', type=float, default=180, help='seconds between kills, on average')
    parser.add_argument('--out', default='runs/soak')
    options = parser.parse_args()
    rng, begun, kills, memory = random.Random(0), time.monotonic(), 0, []
    command = ['--data', options.data, '--model', options.model, '--steps', options.steps, '--out', options.out]
    while True:
        process, ends = subprocess.Popen([BIN / 'cebm', 'train', *command, '--quiet'], stdout=subprocess.DEVNULL), time.monotonic() + rng.uniform(0.5, 1.5) * options.every
        peaks = []
        while process.poll() is None and time.monotonic() < ends:
            time.sleep(1)
            peaks.append(resident(process.pid) or 0)
        settled = peaks[30:] or peaks  # the first half minute is imports and the first updates
        memory.append((settled[0], max(settled)))
        if process.poll() is not None: break
        process.kill()
        process.wait()
        kills += 1
        step = load_weights(Path(options.out) / 'checkpoint' / 'state.safetensors')[1]['step']
        print(f'{(time.monotonic() - begun) / 60:.1f} min: kill {kills}, checkpoint at update {step}, memory {memory[-1][0]:.0f} to {memory[-1][1]:.0f} MiB', flush=True)
        command = ['--resume', options.out]
    print(f'ended with status {process.returncode} after {(time.monotonic() - begun) / 60:.1f} minutes and {kills} kills; memory within a life at most {max(b - a for a, b in memory):.0f} MiB more than at its start, highest {max(b for _, b in memory):.0f} MiB')
    return process.returncode


if __name__ == '__main__': sys.exit(main())
