"""Data of the Hugging Face hub over HTTP: a server of our own that answers what `datasets` asks."""
import io
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cebm_nb as cn

datasets = pytest.importorskip('datasets', reason="the extra hub is not installed")
SHA = '0' * 40


def parquet():
    "Twenty pictures of 8 x 8 with two classes, as a file of the hub."
    pictures = [Image.fromarray(a) for a in np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=['a', 'b']))
    buffer = io.BytesIO()
    datasets.Dataset.from_dict(dict(image=pictures, label=[0, 1] * 10), features=features).to_parquet(buffer)
    return buffer.getvalue()


class Hub(BaseHTTPRequestHandler):
    files = {}

    def log_message(self, *words): pass

    def answer(self, status, body=b'', **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {'Content-Length': len(body), 'X-Repo-Commit': SHA, **headers}.items(): self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)

    def do_GET(self):
        path, names = self.path.split('?')[0], list(self.files)
        if 'someone/data' not in path: return self.answer(404, {}, X_Error_Code='RepoNotFound')
        if '/resolve/' in path:
            name = path.split('/resolve/')[1].partition('/')[2]
            if name not in names: return self.answer(404, {}, X_Error_Code='EntryNotFound')
            return self.answer(200, self.files[name], ETag=f'"{len(self.files[name])}"')
        if '/tree/' in path:
            inside = path.endswith('/data')
            return self.answer(200, [dict(type='file', path=n, size=len(self.files[n]), oid=SHA) for n in names] if inside else [dict(type='directory', path='data', oid=SHA)])
        self.answer(200, dict(id='someone/data', sha=SHA, private=False, tags=[], downloads=0, likes=0, siblings=[dict(rfilename=n) for n in names]))
    do_HEAD = do_GET


def test_a_card_is_that_of_the_weights_beside_it(tmp_path):
    for name in cn.pretrained_names():
        place = tmp_path / name
        for _ in range(2): cn.HubModel(cn.load_model(name), cn.read_card(name)).save_pretrained(place)
        assert cn.HubModel.from_pretrained(place).card == cn.read_card(name) and cn.read_card(name)['command'] in (place / 'README.md').read_text()
    before = {path: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(cn.UserError, match='of another model'): cn.HubModel(cn.create_model('vae', (1, 8, 8))).save_pretrained(place)
    assert before == {path: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(cn.UserError, match='make_card'): cn.HubModel(cn.create_model('vae', (1, 8, 8)), dict(limits='none'))


def test_a_data_set_of_the_hub_is_read_over_http_and_trained_on(tmp_path):
    Hub.files = {f'data/{part}-00000-of-00001.parquet': parquet() for part in ('train', 'test')}
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    about = os.environ | dict(HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}', HF_HOME=str(tmp_path / 'home'), HF_HUB_DISABLE_XET='1')
    def cebm(*words): return subprocess.run([Path(sys.executable).parent / 'cebm', 'train', *words, '--quiet'], cwd=tmp_path, env=about, capture_output=True, text=True, timeout=300)
    try:
        done = cebm('--data', 'hf:someone/data', '--preset', 'smoke', '--steps', '5', '--latent-dim', '4', '--batch-size', '10', '--validate-every', '0', '--out', 'run')
        assert not done.returncode, done.stderr
        config = json.loads((tmp_path / 'run' / 'config.json').read_text())
        assert config['data'] == 'hf:someone/data' and config['run']['in_shape'] == [1, 8, 8]
        wrong = cebm('--data', 'hf:someone/other', '--out', 'none')
        assert wrong.returncode == 2 and 'hf:someone/other cannot be read' in wrong.stderr.splitlines()[-1]
        assert not (tmp_path / 'none').exists()
    finally: server.shutdown()
