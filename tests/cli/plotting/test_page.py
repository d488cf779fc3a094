"""The page: without a network, without markup from runs, and drawn by a real browser if there is one."""

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from purestep.cli.plotting import page
from purestep.cli.plotting.charts import charts_of
from purestep.cli.plotting.reading import RunFiles
from purestep.cli.plotting.rows import rows_of
from tests.cli.hostile import NAMES

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def run(name, count=200, scale=1.0, **config):
    rows = []
    for step in range(1, count + 1):
        row = {"step": step, "loss": scale * math.exp(-step / 50), "tokens": step * 100, "seconds": step / 9}
        row |= {f"grad_norms/layers.{n}": (n + 1) * scale for n in range(12)}
        if step % 50 == 0:
            row["eval_loss"] = 1.1 * row["loss"]
        rows.append(json.dumps(row).encode())
    return RunFiles(name, Path(name), rows_of(rows), config, [])


def written(path, *runs):
    page.write(path, charts_of(runs), runs)
    return path


class Elements(HTMLParser):
    """The tags, the attributes and the data of a page, as a browser splits it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.script = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.script = tag == "script"

    def handle_data(self, data):
        if self.script and data.strip():
            self.scripts.append(data)
            self.script = False


def test_the_page_loads_nothing(tmp_path):
    text = written(tmp_path / "page.html", run("a"), run("b")).read_text()
    assert not re.search(r"(src|href)\s*=|@import|url\((?!#)|fetch\(|import\(|XMLHttp|WebSocket", text)
    assert set(re.findall(r"https?://[^\s\"']*", text)) == {"http://www.w3.org/2000/svg"}  # a namespace
    policy = dict(Elements(text).attributes)["content"]
    assert "default-src 'none'" in text
    assert policy


def test_names_and_settings_are_data_and_never_markup(tmp_path):
    name = EVIL + "".join(NAMES).replace("\udcff", "") + "\u2028<!--"
    row = json.dumps({"step": 1, "loss": 1, EVIL: 2, **{f"{EVIL}/{n}": n for n in range(4)}}).encode()
    runs = [
        RunFiles(name, Path("x"), rows_of([row]), {EVIL: EVIL}, [EVIL]),
        RunFiles("b", Path("x"), rows_of([row]), {EVIL: 3}, []),
    ]
    text = written(tmp_path / "page.html", *runs).read_text()
    plain = Elements(written(tmp_path / "plain.html", run("a"), run("b")).read_text())
    found = Elements(text)
    assert found.tags == plain.tags
    assert not [value for _, value in found.attributes if value and "owned" in value]
    data = json.loads(found.scripts[0])
    assert data["names"][1] == "b"
    assert EVIL in data["names"][0]
    assert data["notes"] == [EVIL]
    assert not re.search("[<>&\u2028]", page.embedded(data))


def test_numbers_that_are_not_finite_are_gaps(tmp_path):
    rows = [b'{"step": 1, "loss": 1e999}', b'{"step": 2, "loss": null}', b'{"step": 3, "loss": 0.123456789}']
    text = written(tmp_path / "page.html", RunFiles("a", Path("a"), rows_of(rows), {}, [])).read_text()
    data = json.loads(Elements(text).scripts[0])
    assert data["curves"][0]["lines"][0]["values"] == [None, None, 0.1234568]


def test_clocks_are_those_that_all_runs_have(tmp_path):
    without = RunFiles(
        "b", Path("b"), rows_of([b'{"step": 1, "loss": 1}', b'{"step": 2, "loss": 1}']), {}, []
    )
    data = json.loads(Elements(written(tmp_path / "one.html", run("a")).read_text()).scripts[0])
    assert [*data["clocks"]] == ["tokens", "seconds"]
    data = json.loads(Elements(written(tmp_path / "two.html", run("a"), without).read_text()).scripts[0])
    assert data["clocks"] == {}


@pytest.fixture
def browser(tmp_path):
    """Load a page in a headless browser without a network; return its elements after the script ran."""
    if BROWSER is None:
        pytest.skip("no browser is installed")

    def load(path, fragment=""):
        options = "--headless --no-sandbox --disable-gpu --dump-dom --virtual-time-budget=3000".split()
        offline = "--host-resolver-rules=MAP * ~NOTFOUND"
        place = f"--user-data-dir={tmp_path / 'profile'}"
        command = [BROWSER, *options, offline, place, f"file://{path}#{fragment}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    return load


def test_a_browser_draws_curves_and_heat_maps(browser, tmp_path):
    path = written(tmp_path / "page.html", run("a", rate=0.1), run("b", 100, 2.0, rate=0.2))
    found = browser(path)
    assert found.count("<section") == 3  # loss, and a heat map of each run
    assert found.count('class="curve"') == 4
    assert found.count("<canvas") == 2
    assert "layers.11" in found
    assert "<td>rate</td><td>0.1</td><td>0.2</td>" in found
    drawn = re.findall(r'class="curve" d="([^"]+)"', found)
    assert all(line.startswith("M") and line.count("L") > 0 for line in drawn)
    assert not re.search("NaN|undefined", re.sub("<script.*?</script>", "", found, flags=re.DOTALL))


def test_a_browser_follows_the_choices_in_the_address(browser, tmp_path):
    path = written(tmp_path / "page.html", run("a"), run("b", 100, 2.0))
    plain = browser(path)
    changed = browser(path, "x=tokens&log=1&smooth=0&hide=1")
    assert ">tokens</text>" in changed
    assert ">tokens</text>" not in plain
    assert changed.count('class="curve"') == 2
    assert (
        re.search(r'class="curve" d="([^"]+)"', changed)[1]
        != re.search(r'class="curve" d="([^"]+)"', plain)[1]
    )


def test_an_axis_that_is_not_there_is_the_step(browser, tmp_path):
    """Every object of JavaScript has a `toString`."""
    found = browser(written(tmp_path / "page.html", run("a")), "x=toString")
    assert ">step</text>" in found
    assert ">nothing to draw</text>" not in found


def test_a_browser_runs_nothing_that_a_run_says(browser, tmp_path):
    row = json.dumps({"step": 1, "loss": 1, EVIL: 2, **{f"{EVIL}/{n}": n for n in range(4)}}).encode()
    runs = [RunFiles(EVIL, Path("x"), rows_of([row]), {EVIL: number}, [EVIL]) for number in (1, 2)]
    found = browser(written(tmp_path / "page.html", *runs), f"x={EVIL}&hide={EVIL}&smooth=nan")
    assert "<title>purestep runs</title>" in found
    assert "<img" not in found
    assert (found.count('class="curve"'), found.count("<canvas")) == (2, 2)  # the slash makes layers


def test_a_browser_draws_odd_values(browser, tmp_path):
    odd = [[1.0], [-1.0, -1.0], [0.0, 0.0], [1e308, -1e308], [5e-324, 1.0], [math.nan], [1e15, 1e16]]
    rows = []
    for step in (0, 1):
        there = {f"f{n}": values[step] for n, values in enumerate(odd) if step < len(values)}
        rows.append(json.dumps({"step": step, **there}))
    path = written(tmp_path / "p.html", RunFiles("a", Path("a"), rows_of(map(str.encode, rows)), {}, []))
    for fragment in ("", "log=1&spikes=1"):
        found = browser(path, fragment)
        assert found.count("<section") == len(odd)
        drawn = re.sub("<script.*?</script>", "", found, flags=re.DOTALL)
        assert not re.findall(".{60}(?:NaN|Infinity|undefined)", drawn)


def test_a_browser_answers_to_the_pointer_and_to_clicks(browser, tmp_path):
    path = written(tmp_path / "page.html", run("first"), run("second", 100, 2.0))
    hands = """<script>
    const box = document.querySelector("section svg").getBoundingClientRect();
    const at = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 };
    document.querySelector("section svg").dispatchEvent(new PointerEvent("pointermove", at));
    document.body.dataset.tip = document.querySelector("section .tip").textContent;
    const canvas = document.querySelector("canvas").getBoundingClientRect();
    const corner = { clientX: canvas.left + 1, clientY: canvas.bottom - 1 };
    document.querySelector("canvas").dispatchEvent(new PointerEvent("pointermove", corner));
    document.body.dataset.heat = document.querySelectorAll("section .tip")[1].textContent;
    document.querySelectorAll("#runs input")[1].click();
    document.body.dataset.curves = document.querySelectorAll(".curve").length;
    </script></body>"""
    path.write_text(path.read_text().replace("</body>", hands))
    body = dict(Elements(browser(path)).attributes)
    assert re.fullmatch(r"first loss [\d.]+ at step 9\dfirst eval_loss .*second loss .*", body["data-tip"])
    assert re.fullmatch(r"layers\.11: 12 at step 1", body["data-heat"])
    assert body["data-curves"] == "2"
