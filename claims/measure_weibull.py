METHODS = ['measure weibull']
PAPER = 'github.com/tiexinding/NPM-Weibull-public'
CLAIM = 'Training leaves the shape of feed-forward and output matrices in 1.18..1.21, and takes q and k of grouped heads to 1.10..1.16.'
NEEDS = ['lm/base']


def measure(lab):
    document = lab.measured([lab.model('lm/base')], 'weibull')
    numbers = {f'median k, {kind}': lab.median(document, 'weibull.k', [kind]) for kind in ('gate', 'up', 'down', 'o', 'q', 'k')}
    band = all(1.18 <= numbers[f'median k, {kind}'] <= 1.21 for kind in ('gate', 'up', 'down', 'o'))
    return band and all(1.10 <= numbers[f'median k, {kind}'] <= 1.16 for kind in ('q', 'k')), numbers
