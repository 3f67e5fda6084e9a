METHODS = ['negmerge']
PAPER = 'arXiv:2410.05583'
CLAIM = 'Where at most 20 % of a class is still recognised, negating only what all fine-tunes agree on retains more of the other classes than the median single vector.'
NEEDS = ['vision/forget', 'vision/data/mnist']


def measure(lab):
    base = lab.model('vision/forget/base')
    models = [lab.model(f'vision/forget/eight-{i}') for i in range(6)]
    # (At an equal loss of retained accuracy, 2 points, all of them forget every eight: that comparison tells nothing here.)
    others = [d for d in range(10) if d != 8]

    def retained(make):
        """The highest accuracy on the other digits over strengths at which eights are forgotten."""
        outs = [make(strength) for strength in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0)]
        return max([lab.accuracy(out, digits=others) for out in outs if lab.accuracy(out, digits=[8]) <= 0.2], default=0.0)

    agreed = retained(lambda s: lab.merge('negmerge', models, base=base, parameters={'lambda': s}, dtype='float16'))
    single = sorted(retained(lambda s, m=m: lab.merge('task_arithmetic', [(m, {'weight': -s})], base=base, dtype='float16')) for m in models)
    median = (single[2] + single[3]) / 2
    return agreed > median, {'accuracy on other digits, base': lab.accuracy(base, digits=others), 'negmerge': agreed, 'median single': median, 'best single': single[-1]}
