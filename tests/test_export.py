"""The package and the README are what the notebooks say."""
import filecmp
import shutil
import subprocess
import sys
from pathlib import Path

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


def test_notebooks_import_only_from_lower_numbers():
    order = {p.stem.split('_', 1)[1]: p.stem[:2] for p in (ROOT / 'nbs').glob('[0-9][0-9]_*.ipynb')}
    seen = 0
    for module, number in order.items():
        for line in (ROOT / 'cebm_nb' / f'{module}.py').read_text().splitlines():
            if line.startswith('from .') and not line.startswith('from . '):
                seen += 1
                assert order[line.split()[1][1:]] < number, f'{module}: {line}'
    assert seen > 10
