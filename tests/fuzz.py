"""Mutations of every text file of a run folder, of grids and of configurations, against every command, in one process.

Example: python tests/fuzz.py 3000 --seed 1. Prints what went wrong: a traceback, a hang, a file written outside. Ends with 1 if anything did."""
import argparse
import contextlib
import copy
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from cebm_nb.cli import main as cebm

HOSTILE = ['![t](https://example.org/x.png)', '\n# heading', '\x1b[2J', '$\\frac$', '../../outside', '/dev/zero', 'folder:/proc', 'npz:/dev/zero', '{x}', "'; echo", '', 'x' * 5000, 'nan', 'gaussian', 'digits']
JUNK = [None, True, False, 0, 1, -1, 2**31, 2**70, 1e308, -0.5, float('nan'), [], {}, [1], {'a': {}}, [[[]]], *HOSTILE]
GRID = dict(out='sweep', title='t', parts=['few-label'], draws=2, grids=[dict(data=['digits', 'mnist-5k'], model=['cebm', 'gmm-cebm'], seed=[0, 1], steps=10, preset='smoke', options=dict(latent_dim=4), settings=dict(batch_size=9))])
YAML = ['a: &a [*a]\n', 'a: !!python/object/apply:os.system ["touch outside/x"]\n', 'a: !!binary aGk=\n', '[' * 3000, '? [a]\n: b\n', 'grids: [{seed: ' + str(list(range(20000))) + '}]\n', '- \n' * 30000]


def places(value, at=()):  # every place of a document
    yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else (): yield from places(inner, (*at, key))


def nested(rng): 
    value = 0
    for _ in range(rng.choice([30, 500, 3000])): value = [value] if rng.random() < 0.5 else {'a': value}
    return value


def mutate_document(document, rng):
    document = copy.deepcopy(document)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        *way, last = rng.choice([at for at in places(document) if at])
        parent = document
        for key in way: parent = parent[key]
        how = rng.random()
        if how < 0.15: del parent[last]
        elif how < 0.25 and isinstance(parent, dict): parent[rng.choice(HOSTILE)] = parent.pop(last)
        elif how < 0.3:
            parent[last] = nested(rng)
            break
        else: parent[last] = copy.deepcopy(rng.choice(JUNK))
        if not document: break
    try: return json.dumps(document, ensure_ascii=rng.random() < 0.5)
    except RecursionError: return '[' * 3000


def mutate_text(text, rng):
    data, at = bytearray(text.encode()), rng.randrange(max(1, len(text)))
    how = rng.randrange(5)
    if how == 0: data[at:at + 1] = bytes([rng.randrange(256)])
    elif how == 1: del data[at:]
    elif how == 2: data[at:at] = rng.choice(JUNK[-15:]).encode()
    elif how == 3: data[at:at + rng.randrange(1, 40)] = b''
    else: data = bytearray(rng.choice([b'', b'\n', b'a,b\n1,2\n', b'\xff\xfe\x00', b'{}', b'[]', b'null']))
    return bytes(data)


def tried(words, limit=10):  # one command: exit code, standard error, seconds
    out, err, begun = io.StringIO(), io.StringIO(), time.monotonic()
    def too_long(*_): raise TimeoutError(f'more than {limit} seconds')
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(limit)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err): cebm([str(word) for word in words])
    except SystemExit as end: status = end.code
    except BaseException as error: status = repr(error)
    finally: signal.alarm(0)
    return status, err.getvalue(), time.monotonic() - begun


def files_below(folder): return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def make_run(folder):
    for words in ('train --data digits --preset smoke --latent-dim 4 --steps 12 --validate-every 6 --quiet --out run', 'eval run --only few-label,neighbours --labels 1,5 --draws 1', 'report run --out page'):
        status, err, _ = tried(words.split(), 120)
        assert status == 0, err
    return folder / 'run'


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('n', type=int)
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args()
    rng, faults, ended = random.Random(options.seed), [], {}
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        os.chdir(place)
        run, texts = make_run(place), {}
        for name in ('config.json', 'eval.json', 'metrics.csv', 'health.csv'): texts[name] = (run / name).read_text()
        (place / 'outside').mkdir()
        for name in ('page', 'none'): shutil.rmtree(place / name, ignore_errors=True)
        commands = {'config.json': ['train --resume copy --steps 13 --quiet', 'eval copy --only few-label --labels 1 --draws 1', 'sample copy --n 2 --steps 1', 'report copy --out page --no-pictures'],
                    'eval.json': ['report copy --out page', 'report copy --out page --no-pictures', 'eval copy --only neighbours'],
                    'metrics.csv': ['train --resume copy --steps 13 --quiet', 'sample copy --n 2 --steps 1'], 'health.csv': ['report copy --out page', 'train --resume copy --steps 13 --quiet'],
                    'grid.yaml': ['sweep grid.yaml --plan'], 'mine.yaml': ['train --config mine.yaml --print-config']}
        config = json.loads(texts['config.json'])
        config.pop('run')
        documents = {'config.json': json.loads(texts['config.json']), 'eval.json': json.loads(texts['eval.json']), 'grid.yaml': GRID, 'mine.yaml': config}
        before = files_below(place)
        for i in range(options.n):
            name = rng.choice([*commands, 'config.json', 'eval.json'])
            plain = texts.get(name) or json.dumps(documents[name])
            text = rng.choice(YAML) if name.endswith('yaml') and rng.random() < 0.1 else mutate_document(documents[name], rng) if name in documents and rng.random() < 0.75 else mutate_text(plain, rng)
            if name in texts: shutil.copytree(run, place / 'copy')
            target = place / 'copy' / name if name in texts else place / name
            target.write_bytes(text if isinstance(text, bytes) else text.encode(errors='surrogatepass'))
            words = rng.choice(commands[name])
            status, err, seconds = tried(words.split())
            ended[name, status] = ended.get((name, status), 0) + 1
            wrong = status not in (0, 1, 2) or 'internal error' in err or (status and len(err.strip().splitlines()) != 1) or seconds > 10
            for folder in ('copy', 'page'): shutil.rmtree(place / folder, ignore_errors=True)
            if name not in texts: target.unlink()
            stray = [str(p) for p in files_below(place) if p not in before]
            if wrong or stray:
                faults.append((i, words, status, err[-300:], round(seconds, 1), stray))
                print('FAULT', *faults[-1], str(text)[:300], sep='\n   ', flush=True)
                for path in stray: Path(path).unlink()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f'{options.n} mutations, {len(faults)} faults, at most {memory:.2f} GB; (file, exit code): {dict(sorted(ended.items(), key=str))}')
    return bool(faults) or memory > 2


if __name__ == '__main__': sys.exit(main())
