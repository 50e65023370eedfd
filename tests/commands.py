"""Commands as a user types them: real processes, real files."""
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

BIN = Path(sys.executable).parent
SMALL = '--data digits --preset smoke --latent_dim 16 --validate-every 0'.split()
FORKS = multiprocessing.get_context('forkserver')  # its processes begin where the slow imports are done: 4 of the 7 seconds of a small command
FORKS.set_forkserver_preload(['cebm_nb.cli', 'cebm_nb.runs', 'cebm_nb.evaluation', 'cebm_nb.report', 'torch._dynamo'])


def hear_ctrl_c(): signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell tells its background jobs to ignore it, and they their children


def start(cwd, command, *args, **options):  # the program itself, running
    options = dict(preexec_fn=hear_ctrl_c) | options
    return subprocess.Popen([BIN / 'cebm', command, *map(str, args)], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def forked(cwd, args, files):
    from cebm_nb.cli import main
    os.chdir(cwd)
    for stream, path in enumerate(files, 1): os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    main(args)


def call(cwd, *args):  # one command to its end: exit code, output, errors
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place) / name for name in ('out', 'err')]
        process = FORKS.Process(target=forked, args=(str(cwd), [str(a) for a in args], files))
        process.start()
        process.join(1200)
        if process.exitcode is None: process.kill()
        process.join()
        return process.exitcode, *(path.read_text() for path in files)


DRIVER = '''
import contextlib, io, json, sys
from cebm_nb.cli import main
results = []
for arguments in json.load(sys.stdin):
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main(arguments)
        except SystemExit as end: status = end.code
        except BaseException as error: status = repr(error)
    results.append([status, err.getvalue()])
json.dump(results, sys.stdout)
'''


def run_lines(lines, cwd, tmp):  # many command lines in one process: [status, standard error] for each
    script = tmp / 'driver.py'
    script.write_text(DRIVER)
    done = subprocess.run([sys.executable, script], input=json.dumps(lines), capture_output=True, text=True, cwd=cwd, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
