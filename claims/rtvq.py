METHODS = ['rtvq']
PAPER = 'Task Vector Quantization for Memory-Efficient Model Merging'
CLAIM = 'At about 2 bits a task vector, a shared base vector with small offsets (rtvq) beats quantizing each alone (tvq).'
NEEDS = ['lm/base', 'lm/german', 'lm/french', 'lm/python', 'lm/shakespeare', 'text/held']


def measure(lab):
    names = ['german', 'french', 'python', 'shakespeare']
    base = lab.model('lm/base')
    models = [(lab.model('lm/' + n), {'weight': 0.3}) for n in names]
    tvq = lab.mean_loss(lab.merge('tvq', models, base=base, parameters={'bits': 2}), names)
    rtvq = lab.mean_loss(lab.merge('rtvq', models, base=base, parameters={'base_bits': 3, 'offset_bits': 2}), names)
    return rtvq < tvq, {'mean loss, tvq 2 bits': tvq, 'rtvq 3 + 2 bits': rtvq}
