"""Two findings look at what a text does with a model, where random matrices alone say nothing: their null rates are those of random models."""
import random

METHODS = ['measure channels', 'measure clamp']
PAPER = 'the table of findings'
CLAIM = 'In random models fewer than 1 in 100 experts stay unused where tokens would make 128 for each, and holding fewer than 1 in 12 neurons makes their token rarer.'
NEEDS = ['text/held']
HIDDEN, VOCAB, LAYERS = 64, 1024, 4


def random_model(lab, seed, experts=0, used=0):
    """A Llama (no experts) or a Mixtral of random numbers, as models are initialised: N(0, 0.02)."""
    draw = random.Random(seed)
    tensors = {}

    def matrix(name, rows, columns):
        tensors[name + '.weight'] = (rows, columns), [draw.gauss(0, 0.02) for _ in range(rows * columns)]

    def norm(name):
        tensors[name + '.weight'] = (HIDDEN,), [1.0] * HIDDEN

    wide = 16 if experts else 128
    matrix('model.embed_tokens', VOCAB, HIDDEN)
    matrix('lm_head', VOCAB, HIDDEN)
    norm('model.norm')
    for layer in range(LAYERS):
        at = f'model.layers.{layer}.'
        norm(at + 'input_layernorm')
        norm(at + 'post_attention_layernorm')
        for name in 'qkvo':
            matrix(at + f'self_attn.{name}_proj', HIDDEN, HIDDEN)
        if experts:
            matrix(at + 'block_sparse_moe.gate', experts, HIDDEN)
        for expert in range(experts):
            for name, shape in (('w1', (wide, HIDDEN)), ('w2', (HIDDEN, wide)), ('w3', (wide, HIDDEN))):
                matrix(at + f'block_sparse_moe.experts.{expert}.{name}', *shape)
        if not experts:
            for name, shape in (('gate', (wide, HIDDEN)), ('up', (wide, HIDDEN)), ('down', (HIDDEN, wide))):
                matrix(at + f'mlp.{name}_proj', *shape)
    config = {'architectures': ['MixtralForCausalLM' if experts else 'LlamaForCausalLM'], 'model_type': 'mixtral' if experts else 'llama',
              'vocab_size': VOCAB, 'hidden_size': HIDDEN, 'intermediate_size': wide, 'num_hidden_layers': LAYERS, 'num_attention_heads': 4,
              'num_key_value_heads': 4, 'hidden_act': 'silu', 'max_position_embeddings': 512, 'rms_norm_eps': 1e-5, 'rope_theta': 10000.0,
              'tie_word_embeddings': False, 'sliding_window': None, 'num_local_experts': experts, 'num_experts_per_tok': used}
    return lab.store(tensors, config, lab.here('models/tiny-base'))


def measure(lab):
    text = ['--text', str(lab.text('english'))]
    numbers, rates = {}, []
    for experts, used, tokens in ((8, 2, 512), (64, 8, 1024), (64, 2, 4096), (128, 8, 2048), (64, 8, 256)):
        unused = looked_at = 0
        for seed in range(4):
            model = lab.measured([random_model(lab, seed, experts, used)], 'channels', *text, '--tokens', tokens)['models'][0]
            counts = lab.layers({'models': [model]}, 'channels.experts.unused')
            unused += sum(counts)
            looked_at += experts * len(counts)
        numbers[f'unused, {used} of {experts} in use, {tokens} tokens'] = f'{unused:.0f} of {looked_at}'
        if tokens * used >= 128 * experts:
            rates.append(unused / looked_at)
    held = lowered = 0
    for seed in range(30):
        model = lab.measured([random_model(lab, 1000 + seed)], 'clamp', *text, '--tokens', 512)['models'][0]['model']
        raised = [model[f'clamp.{c}.raised'] for c in range(int(model['clamp.count']))]
        held += len(raised)
        lowered += sum(r < 0 for r in raised)
    numbers['neurons that lower their token'] = f'{lowered} of {held}'
    return held > 0 and max(rates) < 0.01 and lowered < held / 12, numbers
