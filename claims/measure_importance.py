METHODS = ['measure importance']
PAPER = 'Dumitru et al. 2024'
CLAIM = 'The first layer turns its input most (LIM at least 0.3 above the next), and the share of outlying weights tells layers apart by less than 0.02.'
NEEDS = ['lm/base', 'text/held']


def measure(lab):
    document = lab.measured([lab.model('lm/base')], 'importance', '--text', str(lab.text('english')))
    lim, zd = lab.layers(document, 'importance.lim'), lab.layers(document, 'importance.zd')
    return lim[0] - max(lim[1:]) >= 0.3 and max(zd) - min(zd) < 0.02, {'LIM, first layer': lim[0], 'next': max(lim[1:]), 'range of ZD': max(zd) - min(zd)}
