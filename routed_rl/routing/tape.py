"""The tape of one target, which records what the quarantine's step needs from the backward passes of a step.

Shape letters: B rows of a micro-batch, T tokens, D stream width, K rank, N inputs, E environments, S sampled tokens.
"""

import torch
from torch import Tensor

from routed_rl.linalg import orthonormalise_draws, random_basis
from routed_rl.routing.axes import Along
from routed_rl.routing.context import Record
from routed_rl.routing.pair import BasisPair

SKETCH = 32
"""Number of columns to which a random projection reduces the N columns of gradients when the subspace is compared with random
bases. The squared norm of a projected gradient is an unbiased estimate of the gradient's squared norm."""
MEAN_DECAY = 0.9
"""The factor by which the running mean of the inputs decays in a step."""


class Tape:
    """Holds one target's ledger (E, K, N) of a step, a sample of the target's inputs, and the gradients in random bases. `record`
    or, for an expert of a mixture, `record_tokens` adds a backward pass, and `clear` empties the tape."""

    def __init__(self, environments: int, pair: BasisPair, width: int, *, has_bias: bool) -> None:
        self.pair, self.width, self.has_bias = pair, width, has_bias
        columns, write = width + has_bias, pair.write
        self.ledger = write.new_zeros(environments, write.shape[1], columns)
        self.mean_input = write.new_zeros(columns)
        """Running mean μ of the input over real tokens, (N,)."""
        self.mean_weight = write.new_zeros(())
        self.inputs: list[Tensor] = []
        """Samples of the target's inputs, each (S, N). If a norm stands between writer and stream, each input is multiplied by
        the norm's factor at its token, so that C times the input is its effect on the stream in the coordinates of the basis."""
        self._thinning, self._largest = 1, 0
        self._hits = self._seen = 0
        """For an expert: the number of sampled tokens that the expert got, and the number of all sampled tokens."""
        self.fired = False
        self.along: Along | None = None
        """The two directions along which rows are measured; None if rows are not measured."""
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []
        """For each micro-batch: the completions' numbers (B,), their environments (B,), and the measures of their ledgers along
        the two directions of `along` (B, 2)."""
        self.control_bases: Tensor | None = None
        self.control_sketch: Tensor | None = None
        self._sketched: Tensor | None = None

    def record(self, p: Tensor, g: Tensor, x: Tensor, record: Record, scale_S: Tensor | None) -> None:
        """Add one backward pass. `g`: the cotangent of the writer's output, (B, T, D). `p`: its coordinates `g A`, (B, T, K),
        with 0 in rows that practise. `x`: the writer's input, (B, T, N). `scale_S`: the factors by which a norm behind the writer
        scales the sampled tokens; None: no norm."""
        ids, x = record.environment_ids_B, x.to(p.dtype)
        assert ids is not None
        assert x.dim() == 3 and x.shape[0] == ids.shape[0], (
            f"{x.shape[0]} rows reached a tap but {ids.shape[0]} environment ids are set")
        self.fired = True
        rows = torch.bmm(p.mT, x)
        if self.has_bias:
            rows = torch.cat([rows, p.sum(1).unsqueeze(2)], 2)
        self.ledger.index_add_(0, ids, rows)
        if self.along is not None and record.completions_B is not None:
            self._keep_rows(record, self.along.of_rows(rows))
        sample = x.reshape(-1, self.width)[record.sample_S]
        if self.has_bias:
            sample = torch.cat([sample, sample.new_ones(len(sample), 1)], 1)
        self._keep(sample if scale_S is None else sample * scale_S.unsqueeze(1), record.sample_tokens)
        if record.control_draws and self.control_bases is not None and self.control_sketch is not None:
            self._add_sketched(ids, torch.bmm(record.routed(g.to(p.dtype) @ self.control_bases).mT, x @ self.control_sketch))

    def record_tokens(self, p: Tensor, g: Tensor, x: Tensor, rows: Tensor, sampled: Tensor, record: Record) -> None:
        """Add one backward pass of an expert, for the T tokens that the expert got. `g` (T, D), `p` (T, K) and `x` (T, N) are as
        in `record`. `rows`: the index of each token's row, (T,). `sampled`: whether each token is in the sample, (T,) bool."""
        assert record.environment_ids_B is not None and record.sample_S is not None
        self.fired, x, ids = True, x.to(p.dtype), record.environment_ids_B[rows]
        for e in ids.unique().tolist():
            self.ledger[e] += p[ids == e].mT @ x[ids == e]
        self._keep(x[sampled], record.sample_tokens)
        self._hits, self._seen = self._hits + int(sampled.sum()), self._seen + len(record.sample_S)
        if self.along is not None and record.completions_B is not None:
            along = p.new_zeros(len(record.completions_B), 2).index_add_(0, rows, self.along.of_tokens(p, x))
            self._keep_rows(record, along)
        if record.control_draws and self.control_bases is not None and self.control_sketch is not None:
            drawn, sketched = record.routed_tokens(g.to(p.dtype) @ self.control_bases, rows), x @ self.control_sketch
            self._add_sketched(ids.unique(), torch.stack([drawn[ids == e].mT @ sketched[ids == e] for e in ids.unique()])
                               if len(ids) else drawn.new_zeros(0, drawn.shape[1], SKETCH))

    def _keep_rows(self, record: Record, along_B2: Tensor) -> None:
        """Add the completions of `record` to `self.rows`, each with its environment and its row of `along_B2`, the two inner
        products that `Along.of_rows` returns. Rows that practise are left out."""
        completions, ids = record.completions_B, record.environment_ids_B
        assert completions is not None and ids is not None
        mine = slice(None) if record.practising_B is None else ~record.practising_B
        self.rows.append((completions[mine], ids[mine], along_B2[mine]))

    def _keep(self, sample_SN: Tensor, wanted: int) -> None:
        """Add `sample_SN`, the inputs at the sampled tokens of a backward pass. When the tape holds more than twice `wanted`
        inputs (or twice as many as the largest pass had, if that is more), it drops every second one, so that the inputs come
        evenly from all passes of the step."""
        self._largest = max(self._largest, wanted, len(sample_SN))
        # Cloned, because a slice would keep the memory of its whole micro-batch.
        self.inputs.append(sample_SN[:: self._thinning].clone() if self._thinning > 1 else sample_SN)
        if sum(map(len, self.inputs)) > 2 * self._largest:
            self.inputs, self._thinning = [torch.cat(self.inputs)[::2].clone()], 2 * self._thinning

    def sample(self) -> Tensor:
        """Return the target's inputs at a sample of this step's real tokens, (S, N), scaled as in `inputs`."""
        return torch.cat(self.inputs) if self.inputs else self.ledger.new_zeros(0, self.ledger.shape[2])

    def mean_sums(self) -> Tensor:
        """Return the sum of the inputs over this step's sample and, as the last entry, the number of tokens in the sample, (N +
        1,). Such tensors can be summed over processes."""
        sample = self.sample()
        # An expert's input counts as 0 at tokens that it did not get.
        share, tokens = (self._hits / self._seen, self._seen) if self._seen else (1.0, len(sample))
        mean = sample.mean(0) * share if len(sample) else torch.zeros_like(self.mean_input)
        return torch.cat([mean * tokens, mean.new_tensor([float(tokens)])])

    def update_mean(self, sums: Tensor) -> None:
        """Update the running mean μ, once a step. `sums`: the result of `mean_sums`, summed over all processes."""
        if sums[-1] > 0:
            self.mean_input.lerp_(sums[:-1] / sums[-1], 1 - MEAN_DECAY)
            self.mean_weight.lerp_(torch.ones_like(self.mean_weight), 1 - MEAN_DECAY)

    def to_sum(self) -> list[Tensor]:
        """Return the tensors of the tape that must be summed in place over all processes once a step."""
        return [self.ledger] if self._sketched is None else [self.ledger, self._sketched]

    def mean(self) -> Tensor:
        """Return the running mean μ of the inputs, (N,), corrected for its start at 0 (as Adam corrects its moments)."""
        return self.mean_input / self.mean_weight.clamp(min=1e-12)

    def clear(self) -> None:
        """Empty the tape for the next step. The running mean is kept."""
        self.ledger.zero_()
        self.inputs, self._thinning, self._largest = [], 1, 0
        self._hits = self._seen = 0
        self.along, self.rows = None, []
        self.fired, self.control_bases, self.control_sketch, self._sketched = False, None, None, None

    def draw_control(self, draws: int, seed: int, stream_SD: Tensor | None) -> None:
        """Draw random bases with which the subspace is compared in the coming step. There are `draws` of them, each of the
        subspace's rank. `stream_SD`: S activations of the stream, whose covariance the bases have; None: the bases are isotropic.

        The same seed gives the same bases in every process and on every machine. The gradients in the subspace and in the random
        bases are reduced from N to `SKETCH` columns by the same random projection, so the comparison is fair and takes N / SKETCH
        times less memory.
        """
        width, rank = self.pair.write.shape
        generator = torch.Generator().manual_seed(seed)
        if stream_SD is None:
            bases = random_basis(width, rank, generator, draws=draws)
        else:
            mixing = torch.randn(draws, len(stream_SD), rank, generator=generator)
            bases = orthonormalise_draws(stream_SD.float().cpu().mT @ mixing)
        flat = bases.permute(1, 0, 2).reshape(width, draws * rank).to(self.pair.write)
        # Random bases are written as the subspace is; otherwise a post-norm's gain would make the two incomparable.
        self.control_bases = torch.cat([self.pair.write, self.pair.written(flat)], dim=1)
        self.control_sketch = torch.randn(self.width, SKETCH, generator=generator).to(self.pair.write) / SKETCH**0.5

    def _add_sketched(self, ids: Tensor, rows: Tensor) -> None:
        if self._sketched is None:
            self._sketched = rows.new_zeros(self.ledger.shape[0], *rows.shape[1:])
        self._sketched.index_add_(0, ids, rows)

    def control_energies(self) -> Tensor | None:
        """Return estimates of the squared norm of the gradient inside the subspace (row 0) and inside each random basis (the
        other rows), (1 + draws, 1 + E). Column 0 is for all environments together, and each other column for one environment.
        None if no random bases were drawn for this step."""
        if self._sketched is None:
            return None
        per_basis = self._sketched.unflatten(1, (-1, self.pair.rank))
        everyone = torch.cat([per_basis.sum(0, keepdim=True), per_basis])
        return everyone.square().sum(dim=(2, 3)).mT
