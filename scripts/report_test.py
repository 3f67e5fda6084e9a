#!/usr/bin/env python3
"""report_test.py WEFT [SCREENSHOT_FOLDER]: opens reports in headless Chromium, as a reader would.

Looks at the console, that every chart is drawn, that filters, sorting and paging work, that names from files stay text, that dark and printed pages
are made, and how long 10,000 tensors take. Needs chromium-headless-shell (or chromium) and the models of models/.
"""

import base64
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = "model.layers.0.</script><img src=x onerror=document.hacked=1>\"'&{{7*7}}.weight"


class Browser:
    """The DevTools protocol over the pipe that --remote-debugging-pipe opens: messages end with a zero byte."""

    def __init__(self, program):
        to_browser, from_us = os.pipe()
        from_browser, to_us = os.pipe()
        self.folder = tempfile.mkdtemp()
        # The browser reads file descriptor 3 and writes 4.
        command = f'exec 3<&{to_browser} 4>&{to_us}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", command, "bash", program, "--remote-debugging-pipe", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--user-data-dir={self.folder}", "--window-size=1280,1000", "--no-first-run", "about:blank"],
            pass_fds=(to_browser, to_us), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(to_us)
        self.out, self.input = from_us, os.fdopen(from_browser, "rb", buffering=0)
        self.rest, self.last, self.events, self.session = b"", 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")

    def message(self):
        while b"\0" not in self.rest:
            piece = self.input.read(1 << 20)
            if not piece:
                raise RuntimeError("the browser has ended")
            self.rest += piece
        text, self.rest = self.rest.split(b"\0", 1)
        return json.loads(text)

    def call(self, method, **parameters):
        self.last += 1
        request = {"id": self.last, "method": method, "params": parameters}
        if self.session:
            request["sessionId"] = self.session
        data = json.dumps(request).encode() + b"\0"
        while data:
            data = data[os.write(self.out, data):]
        while True:
            answer = self.message()
            if answer.get("id") == self.last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def run(self, script):
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"])[:2000])
        return result["result"].get("value")

    def open(self, path):
        self.events.clear()
        start = time.monotonic()
        self.call("Page.navigate", url=path.as_uri())
        while not self.run("document.documentElement?.dataset.ready === 'yes'"):
            if time.monotonic() - start > 60 or self.errors():
                raise RuntimeError(f"{path} was not drawn: {self.errors()}")
            time.sleep(0.02)
        return time.monotonic() - start

    def errors(self):
        found = []
        for event in self.events:
            if event["method"] == "Runtime.exceptionThrown":
                details = event["params"]["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"])[:600])
            elif event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "warning", "assert"):
                found.append(" ".join(str(a.get("value", a.get("description"))) for a in event["params"]["args"])[:600])
            elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] in ("error", "warning"):
                found.append(event["params"]["entry"]["text"][:600])
        return found

    def requests(self):
        return [e["params"]["request"]["url"][:120] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def screenshot(self, path):
        height = self.run("document.documentElement.scrollHeight")
        self.call("Emulation.setDeviceMetricsOverride", width=1280, height=min(9000, height), deviceScaleFactor=1, mobile=False)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        self.call("Emulation.clearDeviceMetricsOverride")

    def close(self):
        self.process.terminate()
        self.process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


def write_model(path, tensors):
    """tensors: name -> shape; values that differ a little."""
    header, offset, payload = {}, 0, []
    for i, (name, shape) in enumerate(tensors.items()):
        count = 1
        for side in shape:
            count *= side
        data = struct.pack(f"<{count}f", *(((i * 31 + j * 17) % 101 - 50) / 500 for j in range(count)))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
        payload.append(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(payload))


class Reports(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.browser = Browser(cls.program)
        cls.folder = Path(tempfile.mkdtemp())

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        shutil.rmtree(cls.folder)

    def weft(self, *arguments, status=0):
        result = subprocess.run([self.weft_command, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300)
        self.assertEqual(result.returncode, status, result.stderr)

    def open(self, name, charts):
        """Opens it and checks what holds for every report."""
        seconds = self.browser.open(self.folder / name)
        self.assertEqual(self.browser.errors(), [])
        self.assertEqual([url for url in self.browser.requests() if not url.startswith(("file:", "data:", "about:", "blob:"))], [])
        self.assertEqual(self.browser.run("document.querySelectorAll('figure .chart').length"), charts)
        self.assertEqual(self.browser.run("[...document.querySelectorAll('figure .chart')].filter(c => c.querySelector('svg .mark-rect path, svg .mark-line path, svg .mark-symbol path')).length"), charts)
        # Whoever cannot see a chart is told what it is.
        self.assertEqual(self.browser.run("[...document.querySelectorAll('figure svg')].filter(s => !s.parentElement.closest('[aria-label]') && !s.getAttribute('aria-label')).length"), 0)
        if self.screenshots:
            self.browser.screenshot(self.screenshots / (name + ".png"))
        return seconds

    def row_count(self):
        return int(self.browser.run("[...document.querySelectorAll('[role=status]')].find(e => e.closest('section').querySelector('h2').textContent === 'Tensors').textContent.match(/of (\\d+)/)[1]"))

    TABLE = "[...document.querySelectorAll('section')].find(s => s.querySelector('h2').textContent === 'Tensors')"

    def test_a_measured_model_is_shown_and_its_table_filters_sorts_and_turns_pages(self):
        self.weft("measure", "models/tiny-german", "--base", "models/tiny-base", "--report", self.folder / "pair.html", "--quiet")
        self.open("pair.html", 5)
        run, table = self.browser.run, self.TABLE
        everything = self.row_count()
        self.assertEqual(everything, 21)
        run(f"(() => {{ const i = {table}.querySelector('input[type=search]'); i.value = 'q_proj'; i.dispatchEvent(new Event('input')); }})()")
        self.assertEqual(self.row_count(), 2)
        run(f"(() => {{ const i = {table}.querySelector('input[type=search]'); i.value = ''; i.dispatchEvent(new Event('input')); }})()")
        # The whole way by keyboard: a header's button has the focus, Enter sorts by it.
        run(f"[...{table}.querySelectorAll('th button')].find(b => b.textContent.startsWith('stable rank')).focus()")
        for kind in ("keyDown", "char", "keyUp"):
            self.browser.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, **({"text": "\r"} if kind == "char" else {}))
        column = run(f"[...{table}.querySelectorAll('th')].findIndex(h => h.getAttribute('aria-sort') === 'descending')")
        values = [float(v) for v in run(f"[...{table}.querySelectorAll('tbody tr')].map(r => r.cells[{column}].textContent)") if v != "–"]
        self.assertGreater(len(values), 5)
        self.assertEqual(values, sorted(values, reverse=True))
        # A select of a chart draws it anew.
        before = run("document.querySelectorAll('figure svg')[1].outerHTML.length")
        run("(() => { const s = document.querySelectorAll('section')[2].querySelector('select'); s.selectedIndex = 1; s.dispatchEvent(new Event('change')); })()")
        time.sleep(0.3)
        self.assertNotEqual(run("document.querySelectorAll('figure svg')[1].outerHTML.length"), before)
        # Values for those who cannot see.
        run("document.querySelector('figure details').open = true")
        time.sleep(0.1)
        self.assertGreater(run("document.querySelectorAll('figure details tbody tr').length"), 3)
        self.assertEqual(self.browser.errors(), [])

    def test_it_is_dark_when_asked_and_prints(self):
        self.weft("measure", "models/tiny-base", "--report", self.folder / "one.html", "--quiet")
        self.open("one.html", 4)
        light = self.browser.run("getComputedStyle(document.body).backgroundColor")
        self.browser.run("document.querySelector('button.theme').click()")
        time.sleep(0.5)
        self.assertNotEqual(self.browser.run("getComputedStyle(document.body).backgroundColor"), light)
        if self.screenshots:
            self.browser.screenshot(self.screenshots / "dark.png")
        # What a printer gets: dark pages become white, and what cannot be pressed is gone.
        self.browser.call("Emulation.setEmulatedMedia", media="print")
        self.browser.run("window.dispatchEvent(new Event('beforeprint'))")
        time.sleep(0.5)
        self.assertEqual(self.browser.run("getComputedStyle(document.body).backgroundColor"), "rgb(255, 255, 255)")
        self.assertEqual(self.browser.run("[...document.querySelectorAll('.controls, nav, button.theme')].filter(e => e.offsetParent !== null).length"), 0)
        # Charts too: their background is part of them.
        charts = self.browser.run("[...document.querySelectorAll('figure svg')].map(s => getComputedStyle(s).backgroundColor)")
        self.assertGreater(len(charts), 0)
        self.assertEqual(set(charts), {"rgb(255, 255, 255)"})
        if self.screenshots:
            self.browser.screenshot(self.screenshots / "print.png")
        self.browser.run("window.dispatchEvent(new Event('afterprint'))")
        self.browser.call("Emulation.setEmulatedMedia", media="")
        pdf = base64.b64decode(self.browser.call("Page.printToPDF", printBackground=True)["data"])
        self.assertTrue(pdf.startswith(b"%PDF"))
        if self.screenshots:
            (self.screenshots / "print.pdf").write_bytes(pdf)
        self.assertEqual(self.browser.errors(), [])

    def test_many_models_have_cosines_and_a_line_from_model_to_model(self):
        self.weft("measure", "models/tiny-german", "models/tiny-python", "--base", "models/tiny-base", "--report", self.folder / "set.html", "--quiet")
        self.open("set.html", 8)

    def test_what_texts_show_is_drawn(self):
        texts = []
        for name in ("english", "german", "python"):
            texts += ["--text", f"claims/text/{name}.txt"]
        self.weft("measure", "models/tiny-base", *texts, "--window", "64", "--tokens", "256", "--what", "text,cka,language_geometry,clamp,importance,hessian,landscape",
                  "--curvature", "tokens=128,steps=10,samples=2,points=9", "--report", self.folder / "text.html", "--quiet")
        # Bytes, similarity, distances, map, tree, density, lines, plane.
        self.open("text.html", 8)
        titles = self.browser.run("[...document.querySelectorAll('h2')].map(h => h.textContent)")
        for title in ("Map of texts", "Tree of texts", "Eigenvalues of the loss's Hessian", "Loss along lines", "Loss around the model", "Neurons held at a value", "Layers"):
            self.assertIn(title, titles)
        self.assertGreater(self.browser.run("[...document.querySelectorAll('section')].find(s => s.querySelector('h2').textContent === 'Loss around the model').querySelectorAll('.mark-rule line').length"), 10)

    def test_diff_and_merge_have_reports(self):
        self.weft("diff", "models/tiny-base", "models/tiny-german", "--report", self.folder / "diff.html", "--quiet")
        self.open("diff.html", 2)
        self.weft("merge", "examples/ties.yml", self.folder / "merged", "--report", self.folder / "merge.html", "--quiet")
        self.open("merge.html", 2)

    def test_a_hostile_name_stays_text(self):
        write_model(self.folder / "hostile.safetensors", {HOSTILE: [8, 8], "model.layers.1.\u202eb.weight": [8, 8]})
        self.weft("measure", self.folder / "hostile.safetensors", "--report", self.folder / "hostile.html", "--quiet")
        self.open("hostile.html", 4)
        self.assertEqual(self.browser.run("document.images.length"), 0)
        self.assertIsNone(self.browser.run("document.hacked ?? null"))
        self.assertIn("<img src=x", self.browser.run(f"{self.TABLE}.querySelector('tbody').textContent"))

    def test_ten_thousand_tensors_stay_fluid(self):
        kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "input_layernorm")
        tensors = {f"model.layers.{i}.{kind}.weight": [6, 6] for i in range(2000) for kind in kinds}
        write_model(self.folder / "many.safetensors", tensors)
        self.weft("measure", self.folder / "many.safetensors", "--what", "moments,weibull,ranks", "--report", self.folder / "many.html", "--quiet")
        seconds = self.open("many.html", 4)
        size = (self.folder / "many.html").stat().st_size
        # One step of each kind, timed inside of the page.
        steps = self.browser.run(f"""(async () => {{
          const table = {self.TABLE}, times = {{}};
          const time = async (name, work) => {{ const start = performance.now(); work(); await new Promise(requestAnimationFrame); times[name] = performance.now() - start; }};
          const input = table.querySelector('input[type=search]');
          await time('filter', () => {{ input.value = 'layers.1'; input.dispatchEvent(new Event('input')); }});
          await time('clear', () => {{ input.value = ''; input.dispatchEvent(new Event('input')); }});
          await time('sort', () => [...table.querySelectorAll('th button')][6].click());
          await time('next', () => [...table.querySelectorAll('.pager button')][1].click());
          return times; }})()""")
        print(f"\n10,000 tensors: {size / 1e6:.1f} MB, drawn in {seconds:.2f} s; " + ", ".join(f"{k} {v:.0f} ms" for k, v in steps.items()))
        self.assertEqual(self.row_count(), 10000)
        self.assertLess(seconds, 20)
        for name, milliseconds in steps.items():
            self.assertLess(milliseconds, 1000, name)


def main():
    program = next((shutil.which(name) for name in ("chromium-headless-shell", "chromium", "google-chrome") if shutil.which(name)), None)
    if program is None:
        sys.exit("no Chromium: install chromium-headless-shell")
    Reports.program = program
    Reports.weft_command = str(Path(sys.argv[1]).resolve())
    Reports.screenshots = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    if Reports.screenshots:
        Reports.screenshots.mkdir(parents=True, exist_ok=True)
    probe = subprocess.run([Reports.weft_command, "measure", "models/tiny-base", "--what", "moments", "--quiet", "--report", os.devnull], cwd=ROOT, capture_output=True, text=True)
    if probe.returncode != 0:
        sys.exit(probe.stderr)
    unittest.main(argv=sys.argv[:1], verbosity=2)


if __name__ == "__main__":
    main()
