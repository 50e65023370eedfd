"""The last steps on the rendered site: addresses as Quarto gives them, formulas and fonts that need no network."""
import re
import sys
from pathlib import Path

site = Path(sys.argv[1])
pages = {page.name: re.sub(r'^\d+_', '', page.name) for page in site.glob('[0-9]*_*.html')}
for old, new in pages.items(): (site / old).rename(site / new)

katex = re.compile(r'https://cdn\.jsdelivr\.net/npm/katex@[^/"]+/dist/(contrib/)?')
for page in [*site.rglob('*.html'), site / 'search.json', site / 'sitemap.xml']:
    text, up = page.read_text(encoding='utf-8'), '../' * (len(page.relative_to(site).parts) - 1)
    for old, new in pages.items(): text = text.replace(old, new)
    text = re.sub(r'\[`([\w.]+)`\]\(https?://[^)\s]*\)', r'\1', text)  # Markdown links inside signatures
    text = re.sub(r'(<div class="cell-output cell-output-display")(?=>\s*<div>\s*<style)', r'\1 tabindex="0"', text)  # tables scroll
    page.write_text(katex.sub(f'{up}site/katex/', text), encoding='utf-8')

for sheet in site.rglob('*.css'):  # the themes ask for fonts elsewhere; those of the system do
    text = sheet.read_text(encoding='utf-8')
    clean = re.sub(r'@import\s*(url\([^)]*\)|"[^"]*")[^;]*;', '', text)
    if clean != text: sheet.write_text(clean, encoding='utf-8')
