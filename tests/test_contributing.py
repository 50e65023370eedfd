"""What CONTRIBUTING.md and the other papers of a repository say works."""
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def test_the_examples_for_contributors_run_as_they_stand(tmp_path):
    blocks = re.findall(r'^```python\n(.*?)^```', (ROOT / 'CONTRIBUTING.md').read_text(), re.M | re.S)
    assert len(blocks) == 4
    (tmp_path / 'examples.py').write_text('\n'.join(blocks))
    done = subprocess.run([sys.executable, 'examples.py'], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    assert 'ImageData(stripes' in done.stdout and 'tensor([[' in done.stdout


def test_papers_are_valid_and_name_this_version():
    cff = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    version = re.search(r'^version = (.*)$', (ROOT / 'settings.ini').read_text(), re.M)[1]
    assert {'cff-version', 'message', 'title', 'authors'} <= set(cff) and cff['version'] == version
    for path in ROOT.glob('.github/ISSUE_TEMPLATE/*.yml'): assert {'name', 'description', 'body'} <= set(yaml.safe_load(path.read_text()))
    assert 'dependencies' in yaml.safe_load((ROOT / 'environment.yml').read_text())


def test_the_front_page_is_short_and_its_code_runs(tmp_path):
    text = (ROOT / 'README.md').read_text()
    assert len(text.split()) <= 700
    blocks = re.findall(r'^```python\n(.*?)^```', text, re.M | re.S)
    (tmp_path / 'front.py').write_text('\n'.join(blocks) + '\nprint(z.shape, posterior.mean.shape, score.shape)\n')
    done = subprocess.run([sys.executable, 'front.py'], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    assert done.stdout == 'torch.Size([1000, 128]) torch.Size([1000, 128]) torch.Size([1000])\n'
