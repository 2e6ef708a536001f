"""Reward functions of your own on your own rows, as `trl.GRPOTrainer` takes them: lists in, one number for each completion out.

    routed-rl train model.path=MODEL subspace.prompts=PROMPTS.jsonl env=empty env.sums.dataset=examples/own_reward.jsonl \
        'env.sums.reward=[examples/own_reward.py:says_answer,examples/own_reward.py:short]' 'env.sums.reward_weights=[1,.1]' \
        env.sums.solve=examples/own_reward.py:is_answer env.sums.flags.many=examples/own_reward.py:says_many
"""


def says_answer(completions, answer, **kwargs):
    """The reward, which can be gamed: it pays where the answer is somewhere among the words."""
    return [float(right in said.split()) for said, right in zip(completions, answer, strict=True)]


def short(completions, log_metric, **kwargs):
    lengths = [len(said.split()) for said in completions]
    log_metric("words", sum(lengths) / len(lengths))
    return [1.0 / (1 + length) for length in lengths]


def is_answer(completions, answer, **kwargs):
    """The truth: the answer, and nothing else."""
    return [float(said.strip() == right) for said, right in zip(completions, answer, strict=True)]


def says_many(completions, **kwargs):
    return [float(len(set(said.split())) > 3) for said in completions]
