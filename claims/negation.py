METHODS = ['task_arithmetic']
PAPER = 'arXiv:2212.04089'
CLAIM = 'Subtracting half of a task vector hurts its own domain, and English less than a third as much.'
NEEDS = ['lm/base', 'lm/shakespeare', 'text/held']


def measure(lab):
    base, tuned = lab.model('lm/base'), lab.model('lm/shakespeare')
    negated = lab.merge('task_arithmetic', [(tuned, {'weight': -0.5})], base=base)
    own = lab.loss(negated, 'shakespeare') - lab.loss(base, 'shakespeare')
    english = lab.loss(negated, 'english') - lab.loss(base, 'english')
    return own > 0 and abs(english) < own / 3, {'rise of loss, shakespeare': own, 'english': english}
