METHODS = ['time_vectors']
PAPER = 'github.com/KaiNylund/lm-weights-encode-time'
CLAIM = 'Between two fine-tunes, some position strictly inside has a lower mean loss over both texts than either end.'
NEEDS = ['lm/base', 'lm/german', 'lm/french', 'text/held']


def measure(lab):
    base, german, french = (lab.model('lm/' + m) for m in ('base', 'german', 'french'))
    texts = ['german', 'french']
    losses = {p: lab.mean_loss(lab.merge('time_vectors', [german, french], base=base, parameters={'position': p}), texts) for p in (0.0, 0.25, 0.5, 0.75, 1.0)}
    best = min(losses, key=losses.get)
    return 0 < best < 1, {'best position': best, 'mean loss there': losses[best], 'ends': f'{losses[0.0]:.3f}, {losses[1.0]:.3f}'}
