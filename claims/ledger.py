#!/usr/bin/env python3
"""Runs the claims of this folder and prints the table; with --write also writes docs/claims.md.

usage: ledger.py WEFT [--zoo FOLDER] [--quick] [--write] [--windows N] [NAME...]

A claim is a file here, NAME.py, with
    METHODS  the methods that it is about
    PAPER    where it comes from
    CLAIM    one sentence that could be false
    NEEDS    models and texts of the zoo, or NEEDS = [] when it runs on what the repository holds (it is then part of the quick set)
    def measure(lab): returns (holds, {what: number, ...})
`lab` runs weft: see class Lab. Everything is deterministic; where chance matters, a claim runs several seeds and says how many.
A claim that does not hold stays, with its numbers.
"""
import argparse
import gzip
import importlib.util
import json
import pathlib
import statistics
import struct
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True  # claims are loaded from a folder that may be read-only
HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent


class Lab:
    """Merges, evaluates and compares through the weft binary; remembers what it has measured."""

    def __init__(self, weft, zoo, windows, quick):
        self.weft, self.zoo, self.windows, self.quick = str(weft), zoo, windows, quick
        self.folder = tempfile.TemporaryDirectory(prefix='weft-claims-')
        self.known = {}
        self.number = 0

    def run(self, *arguments):
        """weft ARGUMENT... --json, as a document."""
        done = subprocess.run([self.weft, *map(str, arguments), '--json'], capture_output=True, text=True, timeout=1200)
        if done.returncode != 0:
            raise RuntimeError(f"weft {' '.join(map(str, arguments))}: {done.stdout.strip()} {done.stderr.strip()}")
        return json.loads(done.stdout)

    def model(self, name):
        """A model of the repository ("tiny-base") in the quick set, of the zoo ("lm/german") otherwise."""
        return str(ROOT / 'models' / name if self.quick else self.zoo / name)

    @staticmethod
    def here(name):
        return str(ROOT / name)

    def text(self, name):
        return HERE / 'text' / f'{name}.txt' if self.quick else self.zoo / 'text/held' / f'{name}.txt'

    def training_text(self, name):
        return HERE / 'text' / f'{name}.txt' if self.quick else self.zoo / 'text/train' / f'{name}.txt'

    def place(self):
        self.number += 1
        return str(pathlib.Path(self.folder.name) / f'{self.number}')

    def merge(self, method, models, base=None, parameters=None, dtype='float32', **more):
        """models: names or (name, {parameter: value}). Returns the folder of the result."""
        config = {'merge_method': method, 'dtype': dtype, **more}
        listed = [m if isinstance(m, tuple) else (m, {}) for m in models]
        config['models'] = [{'model': m, **({'parameters': p} if p else {})} for m, p in listed]
        if base:
            config['base_model'] = base
        if parameters:
            config['parameters'] = parameters
        return self.merge_config(config)

    def merge_config(self, config, *options):
        text = json.dumps(config, sort_keys=True)
        if (text, options) not in self.known:
            file = pathlib.Path(self.place() + '.yml')
            file.write_text(text)
            out = self.place()
            self.run('merge', file, out, *options)
            self.known[text, options] = out
        return self.known[text, options]

    def loss(self, model, text):
        """Nats a token on the held-out text of a domain."""
        key = ('loss', model, text)
        if key not in self.known:
            window = 64 if self.quick else 256
            report = self.run('eval', model, '--text', self.text(text), '--window', window, '--windows', self.windows)
            self.known[key] = report['texts'][0]['nll_per_token']
        return self.known[key]

    def measured(self, models, what, *options):
        """weft measure, some groups of some models; remembered."""
        key = ('measured', tuple(models), what, options)
        if key not in self.known:
            self.known[key] = self.run('measure', *models, '--what', what, *options)
        return self.known[key]

    @staticmethod
    def median(document, measure, kinds, model=0):
        """Of a measure, over the matrices of some kinds in the layers."""
        values = [t['values'][measure] for t in document['models'][model]['tensors']
                  if t['role'] in kinds and t['block'] is not None and measure in t['values']]
        return statistics.median(values)

    @staticmethod
    def layers(document, measure, model=0):
        return [b['values'][measure] for b in document['models'][model]['blocks'] if measure in b['values']]

    def store(self, tensors, config=None, tokenizer=None):
        """Writes {name: (shape, numbers)} as float32: a file, or a model's folder with its config and the tokenizer of another model."""
        header, data = {}, b''
        for name, (shape, numbers) in tensors.items():
            header[name] = {'dtype': 'F32', 'shape': list(shape), 'data_offsets': [len(data), len(data) + 4 * len(numbers)]}
            data += struct.pack(f'<{len(numbers)}f', *numbers)
        text = json.dumps(header).encode()
        folder = pathlib.Path(self.place())
        folder.mkdir()
        (folder / 'model.safetensors').write_bytes(struct.pack('<Q', len(text)) + text + data)
        if config is None:
            return str(folder / 'model.safetensors')
        (folder / 'config.json').write_text(json.dumps(config))
        for name in ('tokenizer.json', 'tokenizer_config.json'):
            (folder / name).write_bytes((pathlib.Path(tokenizer) / name).read_bytes())
        return str(folder)

    def mean_loss(self, model, texts):
        return sum(self.loss(model, t) for t in texts) / len(texts)

    def share_of_gain(self, model, base, tuned, text):
        """How much of a fine-tune's gain on its own text a model has."""
        before = self.loss(base, text)
        return (before - self.loss(model, text)) / (before - self.loss(tuned, text))

    # Quantized models lose so little that only the same windows beside each other tell them apart.

    def quantized(self, method, *options, model='lm/base', calibration='text/calibration.txt'):
        """A folder in weft's own form; options as of weft quantize."""
        key = ('quantized', method, options, model, calibration)
        if key not in self.known:
            out = self.place()
            self.run('quantize', self.model(model), out, '--format', 'weft', '--method', method, *options,
                     *(['--calibration', self.zoo / calibration] if calibration else []))
            self.known[key] = out
        return self.known[key]

    def windows_of(self, model, text, windows=100, rounding=()):
        """Nats a token in each window; rounding: options of weft eval that round activations."""
        key = ('windows', model, text, windows, rounding)
        if key not in self.known:
            report = self.run('eval', model, '--text', self.text(text), '--window', 256, '--windows', windows, *rounding)
            self.known[key] = report['texts'][0]['window_nll']
        return self.known[key]

    def divergence(self, model, original, text='english', windows=32):
        """Mean divergence from the original, in nats a token."""
        key = ('divergence', model, original, text, windows)
        if key not in self.known:
            report = self.run('eval', model, '--against', original, '--text', self.text(text), '--window', 256, '--windows', windows)
            self.known[key] = report['texts'][0]['kl_mean']
        return self.known[key]

    def lost(self, model, text='english', original='lm/base', of=1.0, less=None, rounding=(), less_rounding=None):
        """What a model loses a token against the original, in nats, less `of` times what another loses: (mean, half of the 95 % interval), window
        by window. rounding: of the activations of both, less_rounding: of the other's."""
        before = self.windows_of(self.model(original), text)
        own = [a - b for a, b in zip(self.windows_of(model, text, rounding=rounding), before)]
        if less is not None:
            others = self.windows_of(less, text, rounding=rounding if less_rounding is None else less_rounding)
            own = [a - of * (b - c) for a, b, c in zip(own, others, before)]
        mean = sum(own) / len(own)
        spread = (sum((x - mean) ** 2 for x in own) / (len(own) - 1) / len(own)) ** 0.5
        return mean, 1.984 * spread  # Student's t at 99 degrees of freedom

    def loud(self, model, width):
        """The same function with outliers: four channels of what attention and feed-forward parts read are 30 times as loud, and what reads them a
        thirtieth."""
        key = ('loud', model)
        if key not in self.known:
            header = "{'descr': '<f8', 'fortran_order': False, 'shape': (%d,), }" % width
            header += ' ' * (-(len(header) + 11) % 64) + '\n'
            factors = [30.0 if i in (17, 90, 141, 230) else 1.0 for i in range(width)]
            file = pathlib.Path(self.place() + '.npy')
            file.write_bytes(b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header.encode() + struct.pack(f'<{width}d', *factors))
            out = self.place()
            self.run('edit', self.model(model), out, '--cast', '.=float32', '--scale', f'attention_in.*={file}', '--scale', f'mlp_in.*={file}')
            self.known[key] = out
        return self.known[key]

    def search(self, recipe, seed):
        """weft search, its result applied: the report, with the merged model's folder in report['applied']['output']."""
        file = pathlib.Path(self.place() + '.yml')
        file.write_text(json.dumps(recipe))
        return self.run('search', file, '-o', self.place() + '.yml', '--apply', self.place(), '--seed', seed)

    def accuracy(self, model, digits=None, data='mnist'):
        """Share of the test images, or of those of some digits, that a classifier names rightly."""
        key = ('accuracy', model, tuple(digits or ()), data)
        if key not in self.known:
            images, labels = self.images(data, tuple(digits or range(10)))
            self.known[key] = self.run('eval', model, '--images', images, '--labels', labels)['accuracy']
        return self.known[key]

    def images(self, data, digits):
        """idx files of the test images of some digits."""
        key = ('images', data, digits)
        if key not in self.known:
            read = lambda name: gzip.open(self.zoo / 'vision/data' / data / name).read()
            pixels, labels = read('t10k-images-idx3-ubyte.gz'), read('t10k-labels-idx1-ubyte.gz')[8:]
            rows, columns = struct.unpack('>II', pixels[8:16])
            size = rows * columns
            chosen = [i for i, label in enumerate(labels) if label in digits]
            stem = self.place()
            pathlib.Path(stem + '-images').write_bytes(struct.pack('>IIII', 0x803, len(chosen), rows, columns) +
                                                       b''.join(pixels[16 + i * size:16 + (i + 1) * size] for i in chosen))
            pathlib.Path(stem + '-labels').write_bytes(struct.pack('>II', 0x801, len(chosen)) + bytes(labels[i] for i in chosen))
            self.known[key] = stem + '-images', stem + '-labels'
        return self.known[key]


def load(path):
    spec = importlib.util.spec_from_file_location('claim_' + path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for key in ('METHODS', 'PAPER', 'CLAIM', 'NEEDS', 'measure'):
        if not hasattr(module, key):
            raise SystemExit(f'{path}: {key} is missing')
    return module


def shown(value):
    if isinstance(value, tuple):  # a mean and half of its 95 % interval
        return f'{value[0]:+.4f} ± {value[1]:.4f}'
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def write_page(rows, windows):
    lines = ['# Claims', '', 'What the papers behind the methods claim, restated on small trained models and measured; made by `make claims`. A claim that does not',
             'hold stays here with its numbers. Losses are nats a token on held-out text; "gain" is what a fine-tune has over its base on its own domain.',
             f'Language models were measured on the first {windows} windows of 256 tokens of each text.', '',
             '| claim | methods | holds | measured | source |', '| --- | --- | --- | --- | --- |']
    for row in rows:
        measured = '; '.join(f'{k} {shown(v)}' for k, v in row['numbers'].items()) if row['numbers'] else row['why']
        lines.append(f"| {row['claim']} | {', '.join(row['methods'])} | {row['holds']} | {measured} | {row['paper']} |")
    done = [r for r in rows if r['holds'] in ('yes', 'no')]
    lines += ['', f"{sum(r['holds'] == 'yes' for r in done)} of {len(done)} claims hold; {len(rows) - len(done)} were skipped."]
    (ROOT / 'docs/claims.md').write_text('\n'.join(lines) + '\n')


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split('usage: ')[1].splitlines()[0])
    parser.add_argument('weft')
    parser.add_argument('--zoo', type=pathlib.Path)
    parser.add_argument('--quick', action='store_true', help='only claims on what the repository holds')
    parser.add_argument('--write', action='store_true', help='write docs/claims.md')
    parser.add_argument('--windows', type=int, default=32)
    parser.add_argument('names', nargs='*')
    args = parser.parse_intermixed_args()
    files = sorted(p for p in HERE.glob('*.py') if p.name != 'ledger.py')
    unknown = set(args.names) - {p.stem for p in files}
    if unknown:
        raise SystemExit(f"no such claim: {', '.join(sorted(unknown))}")
    labs = {}
    rows, failed = [], False
    for file in files:
        if args.names and file.stem not in args.names:
            continue
        claim = load(file)
        quick = not claim.NEEDS
        if args.quick and not quick:
            continue
        row = {'claim': claim.CLAIM, 'methods': claim.METHODS, 'paper': claim.PAPER, 'numbers': {}, 'holds': 'skipped', 'why': ''}
        absent = [n for n in claim.NEEDS if args.zoo is None or not (args.zoo / n).exists()]
        started = time.time()
        if absent:
            row['why'] = f"absent: {', '.join(absent)}"
        else:
            lab = labs.setdefault(quick, Lab(args.weft, args.zoo, 12 if quick else args.windows, quick))
            try:
                holds, row['numbers'] = claim.measure(lab)
                row['holds'] = 'yes' if holds else 'no'
            except RuntimeError as error:
                row['holds'], row['why'], failed = 'error', str(error)[:300], True
        rows.append(row)
        numbers = ', '.join(f'{k} {shown(v)}' for k, v in row['numbers'].items()) or row['why']
        print(f"{row['holds']:8} {file.stem:22} {numbers}  ({time.time() - started:.1f} s)", flush=True)
    counts = {word: sum(r['holds'] == word for r in rows) for word in ('yes', 'no', 'skipped', 'error')}
    print(', '.join(f'{n} {word}' for word, n in counts.items() if n))
    if args.write:
        write_page(rows, args.windows)
    # Quick claims are tests: one that does not hold fails. The others are a ledger.
    return 1 if failed or (args.quick and counts['no']) else 0


if __name__ == '__main__':
    sys.exit(main())
