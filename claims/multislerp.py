METHODS = ['multislerp']
PAPER = 'mergekit'
CLAIM = "multislerp of task vectors at equal weights has a lower loss than the base on every fine-tune's language."
NEEDS = ['lm/base', 'lm/german', 'lm/french', 'lm/python', 'text/held']


def measure(lab):
    names = ['german', 'french', 'python']
    base = lab.model('lm/base')
    merged = lab.merge('multislerp', [(lab.model('lm/' + n), {'weight': 0.5}) for n in names], base=base)
    numbers = {n + ', base to merged': f'{lab.loss(base, n):.3f} to {lab.loss(merged, n):.3f}' for n in names}
    return all(lab.loss(merged, n) < lab.loss(base, n) for n in names), numbers
