"""The rendered site: links, alternative texts, and in a browser layout, formulas, search and accessibility.

It needs `make docs`; what needs a browser needs Chromium and playwright."""
import functools
import http.server
import re
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

SITE = Path(__file__).resolve().parent.parent / '_docs'
pytestmark = pytest.mark.skipif(not (SITE / 'index.html').exists(), reason='no site here; make docs renders it')
PAGES = sorted(p.relative_to(SITE).as_posix() for p in SITE.rglob('*.html') if 'site_libs' not in p.parts)
RESULT = '.search-result'
SOME = ['index.html', 'quickstart.html', 'gallery.html', 'api.html', 'families.html', 'first.html', 'representation.html', 'howto/detect.html']


class Page(HTMLParser):
    "Links, anchors, pictures and other files of a page."

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors, self.pictures, self.files = [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if 'id' in attrs: self.anchors.add(attrs['id'])
        if tag == 'a' and attrs.get('href'): self.links.append(attrs['href'])
        if tag == 'img': self.pictures.append(attrs)
        for name in ('src', 'href'):
            if tag in ('script', 'link', 'img') and attrs.get(name) and attrs.get('rel') != 'canonical': self.files.append(attrs[name])


@functools.cache
def parsed(page): return Page((SITE / page).read_text(encoding='utf-8'))


@pytest.mark.parametrize('page', PAGES)
def test_every_internal_link_and_anchor_resolves(page):
    wrong = []
    for link in parsed(page).links:
        place = urlsplit(link)
        if place.scheme or link.startswith('//'): continue
        target = (SITE / page).parent / unquote(place.path) if place.path else SITE / page
        if target.is_dir(): target = target / 'index.html'
        if not target.resolve().is_file(): wrong.append(link)
        elif place.fragment and target.suffix == '.html':
            if unquote(place.fragment) not in parsed(target.resolve().relative_to(SITE.resolve()).as_posix()).anchors: wrong.append(link)
    assert not wrong


@pytest.mark.parametrize('page', PAGES)
def test_every_picture_has_an_alternative_text(page):
    assert not [p.get('src', '')[:60] for p in parsed(page).pictures if not p.get('alt', '').strip()]


@pytest.mark.parametrize('page', PAGES)
def test_a_figure_is_a_picture_and_not_its_name(page):
    assert not re.search(r'&lt;\w*Figure size', (SITE / page).read_text(encoding='utf-8'))


@pytest.mark.parametrize('page', PAGES)
def test_nothing_comes_from_elsewhere(page):
    files = [f for f in parsed(page).files if urlsplit(f).scheme in ('http', 'https') or f.startswith('//')]
    assert not files
    assert not [f for f in parsed(page).files if not f.startswith('data:') and not ((SITE / page).parent / unquote(urlsplit(f).path)).is_file()]


@pytest.fixture(scope='module')
def address():
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


@pytest.fixture(scope='module')
def browser():
    playwright = pytest.importorskip('playwright.sync_api', reason='needs playwright')
    chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if not chromium: pytest.skip('needs Chromium')
    with playwright.sync_playwright() as tool:
        found = tool.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        yield found
        found.close()


@pytest.fixture(scope='module')
def tab(browser):
    tab = browser.new_page(viewport=dict(width=1400, height=900))
    yield tab
    tab.close()


@pytest.mark.parametrize('page', PAGES)
def test_a_page_on_a_wide_screen_and_on_a_phone(tab, address, page):
    wrong = []
    def script(error): wrong.append(f'script: {error}')
    def failed(request): wrong.append(f'failed: {request.url}')
    tab.on('pageerror', script); tab.on('requestfailed', failed)
    for width in (1400, 390):
        tab.set_viewport_size(dict(width=width, height=900))
        tab.goto(f'{address}/{page}', wait_until='load')
        beyond = tab.evaluate('document.documentElement.scrollWidth - window.innerWidth')
        if beyond > 0: wrong.append(f'{beyond} pixels beyond {width}')
        wrong += tab.evaluate('''() => [...document.querySelectorAll('.katex-error')].map(e => 'formula: ' + e.textContent)''')
        text = tab.evaluate('''() => { const body = document.querySelector('main').cloneNode(true);
            body.querySelectorAll('pre, code, .katex, script').forEach(e => e.remove()); return body.textContent }''')
        wrong += [f'not rendered: {m}' for m in re.findall(r'\\[(\[].{0,40}|\$\$.{0,40}', text)]
    tab.remove_listener('pageerror', script); tab.remove_listener('requestfailed', failed)
    assert not wrong


def contrast(tab, selector):
    "The contrast ratio of the text of an element (WCAG 2) to the background behind it."
    front, back = tab.evaluate('''selector => { const e = document.querySelector(selector); let b = e, c;
        do { c = getComputedStyle(b).backgroundColor; b = b.parentElement } while (b && /, 0\\)|transparent/.test(c));
        return [getComputedStyle(e).color, c] }''', selector)
    def luminance(colour):
        rgb = [float(v) / 255 for v in re.findall(r'[\d.]+', colour)[:3]]
        rgb = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in rgb]
        return 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2]
    a, b = sorted((luminance(front), luminance(back)))
    return (b + 0.05) / (a + 0.05)


@pytest.mark.parametrize('words', ['own data', 'posterior'])
def test_search_finds_and_can_be_read(tab, address, words):
    tab.set_viewport_size(dict(width=1400, height=900))
    tab.goto(f'{address}/index.html', wait_until='load')
    tab.keyboard.press('/')
    tab.keyboard.type(words)
    found = tab.locator(RESULT)
    found.first.wait_for(timeout=20_000)
    assert found.count() >= 2 and words.split()[-1] in ' '.join(found.all_inner_texts()).lower()
    assert contrast(tab, RESULT) >= 4.5


@pytest.mark.parametrize('page', SOME)
def test_no_serious_fault_of_accessibility(tab, address, page):
    axe = pytest.importorskip('axe_playwright_python.sync_playwright', reason='needs axe-playwright-python')
    tab.set_viewport_size(dict(width=1400, height=900))
    tab.goto(f'{address}/{page}', wait_until='load')
    found = axe.Axe().run(tab, options=dict(runOnly=['wcag2a', 'wcag2aa'])).response['violations']
    assert not [f"{v['id']}: {v['nodes'][0]['target']} {v['nodes'][0].get('failureSummary', '')[:200]} ({len(v['nodes'])})" for v in found if v['impact'] in ('serious', 'critical')]


def test_no_style_sheet_asks_for_anything_elsewhere():
    sheets = {p.relative_to(SITE).as_posix(): p.read_text(encoding='utf-8') for p in SITE.rglob('*.css')}
    assert sheets and not [name for name, text in sheets.items() if re.search(r'@import\s+(url\()?["\']?https?:|url\(["\']?https?:', text)]
