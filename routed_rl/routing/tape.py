"""The tape of one target: it records what the quarantine's step needs from backward passes, for inputs (B, T, N) and for an
expert's tokens."""

import torch
from torch import Tensor

from routed_rl.linalg import orthonormalise_draws, random_basis
from routed_rl.routing.axes import Along
from routed_rl.routing.context import Record
from routed_rl.routing.pair import BasisPair

SKETCH = 32
"""Number of columns of a random sketch, which replaces the N input columns when random bases are compared. It gives an unbiased
estimate of their energy."""
MEAN_DECAY = 0.9
"""Decay per step of the running mean of the inputs."""


class Tape:
    """The ledger (E, K, N), a sample of inputs, and the energies of random bases. `record` fills it, and `clear` empties it."""

    def __init__(self, environments: int, pair: BasisPair, width: int, *, has_bias: bool) -> None:
        self.pair, self.width, self.has_bias = pair, width, has_bias
        columns, write = width + has_bias, pair.write
        self.ledger = write.new_zeros(environments, write.shape[1], columns)
        self.mean_input = write.new_zeros(columns)
        """Running mean μ of the input over real tokens, (N,)."""
        self.mean_weight = write.new_zeros(())
        self.inputs: list[Tensor] = []
        """Samples of inputs (S, N). If a post-norm follows, they are multiplied by the norm's own factor, so that C times them is
        their effect on the stream."""
        self._thinning, self._largest = 1, 0
        self._hits = self._seen = 0
        """For an expert: the number of sampled tokens that it got, and the number of all sampled tokens."""
        self.fired = False
        self.along: Along | None = None
        """The two directions along which rows are measured; None if rows are not measured."""
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []
        """For each micro-batch: its completions (B,), their environments (B,), and their values along the two directions (B,
        2)."""
        self.control_bases: Tensor | None = None
        self.control_sketch: Tensor | None = None
        self._sketched: Tensor | None = None

    def record(self, p: Tensor, g: Tensor, x: Tensor, record: Record, scale_S: Tensor | None) -> None:
        """Add one backward pass: `p = g A` (B, T, K), which is 0 for rows that practise, `g` (B, T, D), `x` (B, T, N), and
        `scale_S`, the factors by which a norm multiplies the sampled tokens (None: no norm)."""
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
        """Add one backward pass of an expert, for the tokens that it got: `p` (T, K), which is 0 for rows that practise, `g` (T,
        D), `x` (T, N), the row of each token, and whether the token is in the sample."""
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
        """Keep the values of each row of the policy along the two directions."""
        completions, ids = record.completions_B, record.environment_ids_B
        assert completions is not None and ids is not None
        mine = slice(None) if record.practising_B is None else ~record.practising_B
        self.rows.append((completions[mine], ids[mine], along_B2[mine]))

    def _keep(self, sample_SN: Tensor, wanted: int) -> None:
        """Keep the sampled tokens of a pass, at most `wanted`. The samples are thinned so that at most twice as many stay, taken
        evenly from all passes of the step."""
        self._largest = max(self._largest, wanted, len(sample_SN))
        # Cloned, because a slice would keep the memory of its whole micro-batch.
        self.inputs.append(sample_SN[:: self._thinning].clone() if self._thinning > 1 else sample_SN)
        if sum(map(len, self.inputs)) > 2 * self._largest:
            self.inputs, self._thinning = [torch.cat(self.inputs)[::2].clone()], 2 * self._thinning

    def sample(self) -> Tensor:
        """Inputs at a sample of this step's real tokens, (S, N)."""
        return torch.cat(self.inputs) if self.inputs else self.ledger.new_zeros(0, self.ledger.shape[2])

    def mean_sums(self) -> Tensor:
        """The sum of the inputs in this step's sample and the number of its tokens, (N + 1,). Both can be summed over
        processes."""
        sample = self.sample()
        # An expert's input counts as 0 at tokens that it did not get.
        share, tokens = (self._hits / self._seen, self._seen) if self._seen else (1.0, len(sample))
        mean = sample.mean(0) * share if len(sample) else torch.zeros_like(self.mean_input)
        return torch.cat([mean * tokens, mean.new_tensor([float(tokens)])])

    def update_mean(self, sums: Tensor) -> None:
        """Update μ with the `mean_sums` of all processes, once a step."""
        if sums[-1] > 0:
            self.mean_input.lerp_(sums[:-1] / sums[-1], 1 - MEAN_DECAY)
            self.mean_weight.lerp_(torch.ones_like(self.mean_weight), 1 - MEAN_DECAY)

    def to_sum(self) -> list[Tensor]:
        """The tensors that are summed over all processes once a step."""
        return [self.ledger] if self._sketched is None else [self.ledger, self._sketched]

    def mean(self) -> Tensor:
        """The running mean μ (N,), corrected for bias, so that it is right from the first step on."""
        return self.mean_input / self.mean_weight.clamp(min=1e-12)

    def clear(self) -> None:
        """Empty the tape for the next step. The running mean is kept."""
        self.ledger.zero_()
        self.inputs, self._thinning, self._largest = [], 1, 0
        self._hits = self._seen = 0
        self.along, self.rows = None, []
        self.fired, self.control_bases, self.control_sketch, self._sketched = False, None, None, None

    def draw_control(self, draws: int, seed: int, stream_SD: Tensor | None) -> None:
        """Draw `draws` random bases of the subspace's rank for the coming step, isotropic or with the covariance of `stream_SD`.

        The same seed gives the same bases in every process and on every machine. The subspace and the random bases are all
        compared through one random sketch of the gradient's N columns, so the comparison is fair and takes N / SKETCH times less
        memory.
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
        """Routed energy of the subspace (first) and of each random basis, (1 + draws, 1 + E); column 0 is the total."""
        if self._sketched is None:
            return None
        per_basis = self._sketched.unflatten(1, (-1, self.pair.rank))
        everyone = torch.cat([per_basis.sum(0, keepdim=True), per_basis])
        return everyone.square().sum(dim=(2, 3)).mT
