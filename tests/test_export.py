"""The package and the README are what the notebooks say."""
import filecmp
import re
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def test_nbdev_export_changes_nothing(tmp_path):
    for name in ('nbs', 'cebm_nb'): shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__'), symlinks=True)
    for name in ('settings.ini', 'pyproject.toml', 'setup.py', '_quarto.yml'): shutil.copy(ROOT / name, tmp_path)
    subprocess.run([BIN / 'nbdev_export'], cwd=tmp_path, check=True)
    ours, fresh = ({p.relative_to(d).as_posix() for p in (d / 'cebm_nb').rglob('*.py')} for d in (ROOT, tmp_path))
    assert ours == fresh
    changed = [name for name in ours if not filecmp.cmp(ROOT / name, tmp_path / name, shallow=False)]
    assert not changed, f'run nbdev_export and commit: {changed}'


def test_readme_is_the_index_notebook(tmp_path):
    made = tmp_path / 'README.md'
    subprocess.run(['make', '-s', 'readme', f'README={made}', f'BIN={BIN}', f'STAMP={ROOT / "settings.ini"}'], cwd=ROOT, check=True)
    assert made.read_text() == (ROOT / 'README.md').read_text(), 'run make readme and commit'


PARTS = dict(method='families conjugacy models sgld toys trainer likelihood', images='data encoders', baselines='vae bigan guided',
             evaluation='plots representation detection samples conditional evaluation report', running='storage settings zoo runs fast bench workers sweep processes estimators hub watch cli')


def imports(module):  # of this package, at the top of a module
    return {name for line in (ROOT / 'cebm_nb' / f'{module}.py').read_text().splitlines() for name in re.findall(r'^from \.(\w+) import', line)}


def test_imports_form_no_circle_and_the_method_knows_nothing_of_running():
    part = {module: name for name, modules in PARTS.items() for module in modules.split()}
    assert set(part) == {p.stem for p in (ROOT / 'cebm_nb').glob('[a-z]*.py')}
    needs = {module: imports(module) for module in part}
    assert tuple(TopologicalSorter(needs).static_order())                          # raises CycleError where there is one
    for module, used in needs.items():
        if part[module] in ('method', 'images', 'baselines'):
            assert not {other for other in used if part[other] in ('evaluation', 'running')} - {'storage', 'fast', 'processes', 'settings'}, module
        if part[module] == 'evaluation': assert not used & {'runs', 'bench', 'workers', 'sweep', 'cli'}, module


def test_numbers_follow_the_reading_order_of_the_site():
    def listed(entry): return [p for e in entry['contents'] for p in listed(e)] if 'contents' in entry else [entry['href']]
    pages = listed(yaml.safe_load((ROOT / '_quarto.yml').read_text())['website']['sidebar'])
    numbered = [page for page in pages if page[0].isdigit()]
    assert numbered == sorted(numbered) and {p.name for p in (ROOT / 'nbs').glob('*.ipynb')} <= set(pages)
    for page in pages: assert (ROOT / 'nbs' / page).is_file()


def test_the_public_face_is_cheap_and_complete():
    code = "import sys, cebm_nb as cn; names = dir(cn); print('torch' in sys.modules, cn.__version__)\nfor name in cn.__all__: assert name in names and getattr(cn, name) is not None"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == 'False'
