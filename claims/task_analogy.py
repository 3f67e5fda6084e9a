METHODS = ['task_analogy']
PAPER = 'arXiv:2212.04089'
CLAIM = '"A base is to its newer version as its German fine-tune is to ?" gives a model that is better at German than the newer base.'
NEEDS = ['lm/base', 'lm/base-v2', 'lm/german', 'lm/french', 'text/held']


def measure(lab):
    base, newer, german = (lab.model('lm/' + m) for m in ('base', 'base-v2', 'german'))
    out = lab.merge('task_analogy', [base, newer, german], base=lab.model('lm/french'))  # at lambda 1 the base cancels, and is not read
    return lab.loss(out, 'german') < lab.loss(newer, 'german'), {'loss on German, newer base': lab.loss(newer, 'german'), 'analogy': lab.loss(out, 'german')}
