METHODS = ['measure task_vectors']
PAPER = 'arXiv:2212.04089; github.com/lshangge/OrthoReg'
CLAIM = 'Task vectors of two European languages point more the same way than those of a language and of Python.'
NEEDS = ['lm/base', 'lm/german', 'lm/french', 'lm/python']


def measure(lab):
    models = [lab.model('lm/' + m) for m in ('german', 'french', 'python')]
    document = lab.measured(models, 'task_vectors', '--base', lab.model('lm/base'))
    total = next(c for c in document['comparisons'] if c['kind'] == 'set')['total']
    cosine = lambda i, j: total[f'task_vectors.cosine.all tensors.{i}.{j}']
    numbers = {'cosine, german and french': cosine(0, 1), 'german and python': cosine(0, 2), 'french and python': cosine(1, 2)}
    return numbers['cosine, german and french'] > max(numbers['german and python'], numbers['french and python']), numbers
