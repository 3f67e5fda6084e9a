METHODS = ['negmerge']
PAPER = 'arXiv:2410.05583'
CLAIM = 'With at most 2 points of accuracy lost on the other classes, negating only what all fine-tunes agree on forgets more of a class than the median single vector.'
NEEDS = ['vision/forget', 'vision/data/mnist']


def measure(lab):
    base = lab.model('vision/forget/base')
    models = [lab.model(f'vision/forget/eight-{i}') for i in range(6)]
    others = [d for d in range(10) if d != 8]
    before = lab.accuracy(base, digits=others)

    def tried(make):
        """(accuracy on eights, on the other digits) at each strength."""
        outs = [make(strength) for strength in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0)]
        return [(lab.accuracy(out, digits=[8]), lab.accuracy(out, digits=others)) for out in outs]

    def left(points):
        """Of eights, at the strength that forgets most among those that keep the rest."""
        return min([eights for eights, rest in points if rest >= before - 0.02], default=1.0)

    def retained(points):
        """Of the other digits, where eights are forgotten: a second look, for when both forget all."""
        return max([rest for eights, rest in points if eights <= 0.2], default=0.0)

    def median(values):
        values = sorted(values)
        return (values[2] + values[3]) / 2

    agreed = tried(lambda s: lab.merge('negmerge', models, base=base, parameters={'lambda': s}, dtype='float16'))
    single = [tried(lambda s, m=m: lab.merge('task_arithmetic', [(m, {'weight': -s})], base=base, dtype='float16')) for m in models]
    eights, usual = left(agreed), median([left(points) for points in single])
    return eights < usual, {'eights still recognised, negmerge': eights, 'median single': usual,
                            'other digits where eights are forgotten, negmerge': retained(agreed), 'the same, median single': median([retained(p) for p in single])}
