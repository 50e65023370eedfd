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
