import math
import random

METHODS = ['measure word_rules']
PAPER = "a text network's filters as n-gram rules"
CLAIM = 'Word lists read off the filters of a text classifier, with the weights of its votes, keep 90 % of its accuracy (three languages by letters).'
NEEDS = ['text/train', 'text/held']
LANGUAGES = ('english', 'german', 'french')
LETTERS = ' abcdefghijklmnopqrstuvwxyzäöüßéèàçêôîûâùœ.'  # the last one stands for all else
WIDTH, FILTERS, SLOTS, SPAN = 12, 24, 3, 32


def samples(lab, part, each, seed):
    """(letters, language), cut at random."""
    draw = random.Random(seed)
    place = {c: i for i, c in enumerate(LETTERS)}
    found = []
    for label, language in enumerate(LANGUAGES):
        text = (lab.training_text(language) if part == 'train' else lab.text(language)).read_text(encoding='utf-8')
        codes = [place.get(c, len(LETTERS) - 1) for c in ' '.join(text[:300000].lower().split())]
        found += [(codes[at:at + SPAN], label) for at in (draw.randrange(len(codes) - SPAN) for _ in range(each))]
    draw.shuffle(found)
    return found


def train(data, seed):
    """An embedding, filters over three letters, their largest answer over the text, a ReLU, and a linear layer; by Adam on batches of 16."""
    draw = random.Random(seed)
    shapes = {'embed': len(LETTERS) * WIDTH, 'filters': FILTERS * SLOTS * WIDTH, 'bias': FILTERS, 'head': len(LANGUAGES) * FILTERS}
    w = {k: [draw.gauss(0, 0.3) if k != 'bias' else 0.0 for _ in range(n)] for k, n in shapes.items()}
    m, v = ({k: [0.0] * n for k, n in shapes.items()} for _ in range(2))
    batches = [data[i:i + 16] for i in range(0, len(data) - 15, 16)]
    for step, batch in enumerate(batches, 1):
        g = {k: [0.0] * n for k, n in shapes.items()}
        table = answers(w)
        for codes, label in batch:
            pooled, at = pool(table, codes)
            h = [max(0.0, p + b) for p, b in zip(pooled, w['bias'])]
            p = softmax(votes(w['head'], h))
            p[label] -= 1
            for f in range(FILTERS):
                for c in range(len(LANGUAGES)):
                    g['head'][c * FILTERS + f] += p[c] * h[f] / 16
                if h[f] <= 0:
                    continue
                back = sum(p[c] * w['head'][c * FILTERS + f] for c in range(len(LANGUAGES))) / 16
                g['bias'][f] += back
                for s in range(SLOTS):
                    e, k = codes[at[f] + s] * WIDTH, (f * SLOTS + s) * WIDTH
                    for d in range(WIDTH):
                        g['embed'][e + d] += back * w['filters'][k + d]
                        g['filters'][k + d] += back * w['embed'][e + d]
        rate = 0.02 * (1 - step / (len(batches) + 1)) * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        for k in w:
            for i, x in enumerate(g[k]):
                m[k][i] += 0.1 * (x - m[k][i])
                v[k][i] += 0.001 * (x * x - v[k][i])
                w[k][i] -= rate * m[k][i] / (math.sqrt(v[k][i]) + 1e-8)
    return w


def answers(w):
    """What each letter gives each slot of each filter."""
    e, k = w['embed'], w['filters']
    return [[[sum(e[c * WIDTH + d] * k[(f * SLOTS + s) * WIDTH + d] for d in range(WIDTH)) for c in range(len(LETTERS))] for s in range(SLOTS)]
            for f in range(FILTERS)]


def pool(table, codes):
    pooled, at = [], []
    for first, second, third in table:
        got = [first[a] + second[b] + third[c] for a, b, c in zip(codes, codes[1:], codes[2:])]
        pooled.append(max(got))
        at.append(got.index(pooled[-1]))
    return pooled, at


def votes(head, h):
    return [sum(a * b for a, b in zip(head[c * FILTERS:(c + 1) * FILTERS], h)) for c in range(len(LANGUAGES))]


def softmax(x):
    e = [math.exp(a - max(x)) for a in x]
    return [a / sum(e) for a in e]


def rules_of(values, table, data, w):
    """Of each filter the letters of each slot: those at most so far below the slot's best that all slots match as often as the filter answers above its
    mean. (letters of each slot, threshold, what the filter gives on average when they match, and when not)"""
    rules = []
    pooled = [pool(table, codes)[0] for codes, _ in data]
    for f in range(FILTERS):
        mean = sum(p[f] for p in pooled) / len(data)
        wanted = sum(p[f] > mean for p in pooled)
        slots = []
        for s in range(SLOTS):
            words = [k for k in range(20) if f'word_rules.{f}.slots.{s}.words.{k}' in values]
            scores = [values[f'word_rules.{f}.slots.{s}.scores.{k}'] for k in words]
            slots.append({int(values[f'word_rules.{f}.slots.{s}.words.{k}']): scores[0] - scores[k] for k in words})
        # Matching means that some place's worst slot is within the threshold: so that worst slot is the only number needed of a text.
        worst = [nearest(slots, codes) for codes, _ in data]
        threshold = sorted(worst)[max(0, wanted - 1)]
        fired = [x <= threshold and x < math.inf for x in worst]
        h = [max(0.0, p[f] + w['bias'][f]) for p in pooled]
        average = lambda which: sum(a for a, b in zip(h, fired) if b == which) / max(1, fired.count(which))
        rules.append((slots, threshold, average(True), average(False)))
    return rules


def nearest(slots, codes):
    far = math.inf
    return min(max(slots[0].get(a, far), slots[1].get(b, far), slots[2].get(c, far)) for a, b, c in zip(codes, codes[1:], codes[2:]))


def measure(lab):
    numbers, shares = {}, []
    test = samples(lab, 'held', 400, 99)
    for seed in range(3):
        data = samples(lab, 'train', 2400, seed)
        w = train(data, seed)
        table = answers(w)
        file = lab.store({'embed.weight': ((len(LETTERS), WIDTH), w['embed']), 'filters.weight': ((FILTERS, SLOTS, WIDTH), w['filters'])})
        values = next(t['values'] for t in lab.measured([file], 'word_rules')['models'][0]['tensors'] if t['name'] == 'filters.weight')
        rules = rules_of(values, table, data[:1500], w)
        best = lambda scores: max(range(len(scores)), key=scores.__getitem__)
        network = [best(votes(w['head'], [max(0.0, p + b) for p, b in zip(pool(table, codes)[0], w['bias'])])) for codes, _ in test]
        ruled = []
        for codes, _ in test:
            ruled.append(best(votes(w['head'], [yes if nearest(slots, codes) <= limit else no for slots, limit, yes, no in rules])))
        right = lambda named: sum(n == label for n, (_, label) in zip(named, test)) / len(test)
        numbers[f'accuracy, network {seed}'], numbers[f'rules {seed}'] = right(network), right(ruled)
        numbers[f'agreement {seed}'] = sum(a == b for a, b in zip(network, ruled)) / len(test)
        shares.append(right(ruled) / right(network))
    return min(shares) >= 0.9, {'least share kept': min(shares), **numbers}
