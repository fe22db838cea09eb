"""`MetricTests`: checks on values, gradients, weights, degenerate input, precision, state, fused kernels, and in use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..contracts import Metric
from ..data import Grid, Image, PointSet
from ._base import PluginTests, SkipTest, refusal, want

_SMALL = {2: (7, 9), 3: (5, 6, 7)}
_LARGE = {2: (30, 33), 3: (14, 15, 16)}
"""Pixels of the images that a metric is tested with, by number of axes; no two sides alike, so that swapped axes show."""
_N_POINTS = 40
"""Number of points in the point sets with which a metric is tested."""


class Pair(NamedTuple):
    """Arguments of a metric: warped and fixed ``[C, *S]``, or ``[N, D]`` and ``[M, D]``; weight ``[*S]`` or ``[N]``."""

    warped: Tensor
    fixed: Tensor
    weight: Tensor

    def to(self, target: torch.dtype | torch.device) -> Pair:
        return Pair(*(t.to(target) for t in self))


class MetricTests(PluginTests):
    """Subclass it, write ``make``, and pytest runs every check on your metric.

    Test images have two channels on either side, at most 33 × 30 pixels, and values of about 50 ± 20; point sets have 40
    points. Override a check to replace it; set it to None to leave it out. Override ``texture`` (``pair`` for points) for a
    metric that cannot compare smooth noise.

    Attributes:
        ndims: numbers of dimensions to test, of 2 and 3.
        bad_options: options that ``__init__`` has to refuse with a ValueError, a mapping each; beside these, a word is
            given for every option whose default is a number or true/false.
    """

    ndims: ClassVar[Sequence[int]] = (2, 3)

    def make(self) -> Metric:
        """A new metric to test, with options of your choice."""
        metric: Metric = super().make()
        return metric

    # ---- test data --------------------------------------------------------------------------------------------------

    @property
    def _of_points(self) -> bool:
        return self.make().accepts == (PointSet, PointSet)

    def pair(self, ndim: int, channels: tuple[int, int] = (2, 2), seed: int = 3) -> Pair:
        """A small pair whose sides are related, float64, weights from 0.1 to 1."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        if self._of_points:
            fixed = 10 * torch.rand((_N_POINTS, ndim), generator=generator, dtype=torch.float64)
            warped = fixed[: _N_POINTS - 5].flip(0) + 0.3 * normal(_N_POINTS - 5, ndim)
            weight = 0.1 + 0.9 * torch.rand(len(warped), generator=generator, dtype=torch.float64)
            return Pair(warped, fixed, weight)
        base = normal(1, *_SMALL[ndim])
        warped = 50 + 20 * (base + 0.5 * normal(channels[0], *_SMALL[ndim]))
        fixed = 50 + 20 * (base + 0.5 * normal(channels[1], *_SMALL[ndim]))
        weight = 0.1 + 0.9 * torch.rand(_SMALL[ndim], generator=generator, dtype=torch.float64)
        return Pair(warped, fixed, weight)

    def texture(self, ndim: int, shift: int = 0, seed: int = 0) -> Tensor:
        """A smooth random image ``[1, *S]`` with values of about 50 ± 20, moved by ``shift`` pixels along every axis."""
        margin = 8
        generator = torch.Generator().manual_seed(seed)
        shape = tuple(n + 2 * margin for n in _LARGE[ndim])
        x = torch.rand((1, *shape), generator=generator, dtype=torch.float64)
        smooth = torch.nn.functional.avg_pool2d if ndim == 2 else torch.nn.functional.avg_pool3d
        for _ in range(2):
            x = smooth(x, 3, 1, 1, count_include_pad=False)
        inner = tuple(slice(margin + shift, margin + shift + n) for n in _LARGE[ndim])
        x = x[:, *inner]
        return 50 + 20 * (x - x.mean()) / x.std()

    def _off(self, ndim: int, by: float) -> Pair:
        """A pair that is misaligned by ``by`` pixels (points: by that fraction of their spacing) along every axis."""
        if self._of_points:
            generator = torch.Generator().manual_seed(0)
            fixed = 10 * torch.rand((_N_POINTS, ndim), generator=generator, dtype=torch.float64)
            spacing = 10 / _N_POINTS ** (1 / ndim)
            return Pair(fixed + by * spacing / 4, fixed, torch.ones(_N_POINTS, dtype=torch.float64))
        fixed = self.texture(ndim)
        return Pair(self.texture(ndim, round(by)), fixed, torch.ones(_LARGE[ndim], dtype=torch.float64))

    def _side(self, data: Tensor, weight: Tensor | None = None) -> Image | PointSet:
        if self._of_points:
            return PointSet(data.detach())
        return Image(data.detach(), Grid(tuple(data.shape[1:])), weight=weight)

    def _ready(self, pair: Pair) -> Metric:
        """A new metric, prepared for this pair."""
        metric = self.make()
        metric.prepare(self._side(pair.fixed), self._side(pair.warped))
        return metric

    def _value(self, pair: Pair, metric: Metric | None = None) -> float:
        with torch.no_grad():
            value = (metric or self._ready(pair))(*pair)
        want(
            isinstance(value, Tensor) and value.numel() == 1,
            "a scalar tensor",
            list(value.shape) if isinstance(value, Tensor) else type(value).__name__,
            "return the weighted mean over everything",
        )
        return float(value)

    def _gradient(self, pair: Pair, metric: Metric) -> Tensor:
        """The gradient in the warped side, of its shape."""
        x = pair.warped.detach().clone().requires_grad_(True)
        value = metric(x, pair.fixed, pair.weight)
        want(
            value.requires_grad,
            "a value that is differentiable in warped",
            "one without a graph",
            "use torch operations throughout, no .item(), .detach() or numpy",
        )
        (gradient,) = torch.autograd.grad(value, x, allow_unused=True)
        want(gradient is not None, "a value that depends on warped", "one that does not")
        assert gradient is not None
        return gradient

    def _used(self, folder: Path) -> None:
        pair = self.pair(self.ndims[0])
        metric = self._ready(pair)
        self._value(pair, metric)
        self._gradient(pair, metric)

    # ---- values -----------------------------------------------------------------------------------------------------

    def test_value_is_a_scalar(self) -> None:
        """The value is one finite number of a floating dtype, of shape ``[]``."""
        for ndim in self.ndims:
            pair = self.pair(ndim)
            value = self._ready(pair)(*pair)
            want(isinstance(value, Tensor), "a tensor", type(value).__name__, "stay in torch")
            want(value.shape == (), "a scalar, shape []", list(value.shape), "return the mean over everything")
            want(value.dtype.is_floating_point, "a floating dtype", value.dtype)
            want(bool(value.isfinite()), f"a finite value in {ndim}D", float(value))

    def test_lower_where_aligned(self) -> None:
        """The value is lower for an aligned pair than for the same pair 1, 2 and 4 pixels off."""
        for ndim in self.ndims:
            aligned = self._off(ndim, 0)
            metric = self._ready(aligned)
            best = self._value(aligned, metric)
            for by in (1, 2, 4):
                worse = self._value(self._off(ndim, by), metric)
                want(
                    best < worse - 1e-9 * abs(best),
                    f"less for an aligned {ndim}D pair than {by} px off (lower is better)",
                    f"{best:.6g} aligned and {worse:.6g} off",
                    "turn the sign round",
                )

    def test_constant_and_tiny_input(self) -> None:
        """Value and gradient are finite on constant images, on a single pixel, and where every weight is 0."""
        for ndim in self.ndims:
            for dtype in (torch.float32, torch.float64):
                for name, pair in self._degenerate(ndim):
                    pair = pair.to(dtype)

                    def call(pair: Pair = pair) -> tuple[float, Tensor]:
                        metric = self._ready(pair)
                        return self._value(pair, metric), self._gradient(pair, metric)

                    few = self._of_points and name != "a weight of 0 everywhere"
                    if few and refusal(call, name) is not None:
                        continue  # a metric may refuse too few points, in a sentence
                    value, gradient = call()
                    advice = "clamp what is divided by, and add to what is under a root or a logarithm"
                    want(math.isfinite(value), f"a finite value for {name} ({ndim}D, {dtype})", value, advice)
                    want(
                        bool(gradient.isfinite().all()),
                        f"a finite gradient for {name} ({ndim}D, {dtype})",
                        f"{int((~gradient.isfinite()).sum())} entries that are not",
                        advice,
                    )

    def _degenerate(self, ndim: int) -> list[tuple[str, Pair]]:
        warped, fixed, weight = self.pair(ndim)
        cases = [("a weight of 0 everywhere", Pair(warped, fixed, torch.zeros_like(weight)))]
        if self._of_points:
            same = torch.full_like(warped, 5.0)
            return [
                *cases,
                ("a single point on either side", Pair(warped[:1], fixed[:1], weight[:1])),
                ("moving points that all coincide", Pair(same, fixed, weight)),
                ("fixed points that all coincide", Pair(warped, torch.full_like(fixed, 5.0), weight)),
            ]
        flat_m, flat_f = torch.full_like(warped, 7.0), torch.full_like(fixed, 9.0)
        one = (slice(None), *(slice(0, 1),) * ndim)
        few = (slice(None), *(slice(0, 2),) * ndim)
        return [
            *cases,
            ("a constant moving image", Pair(flat_m, fixed, weight)),
            ("a constant fixed image", Pair(warped, flat_f, weight)),
            ("two constant images", Pair(flat_m, flat_f, weight)),
            ("two images of zeros", Pair(torch.zeros_like(warped), torch.zeros_like(fixed), weight)),
            ("a single pixel", Pair(warped[one], fixed[one], weight[one[1:]])),
            ("two pixels per axis", Pair(warped[few], fixed[few], weight[few[1:]])),
        ]

    def test_weight_zero_hides(self) -> None:
        """Pixels (moving points) of weight 0 influence neither value nor gradient, and their own gradient is 0."""
        for ndim in self.ndims:
            pair = self.pair(ndim)
            metric = self._ready(pair)
            weight = pair.weight.clone()
            hidden = (slice(1, 4),) if self._of_points else (slice(1, 4),) * ndim
            weight[hidden] = 0.0
            at = hidden if self._of_points else (slice(None), *hidden)
            warped, fixed = pair.warped.clone(), pair.fixed.clone()
            warped[at] = 250.0
            if not self._of_points:
                fixed[at] = -150.0
            seen, other = Pair(pair.warped, pair.fixed, weight), Pair(warped, fixed, weight)
            values = [self._value(one, metric) for one in (seen, other)]
            what = "points" if self._of_points else "pixels"
            want(
                math.isclose(*values, rel_tol=1e-9, abs_tol=1e-12),
                f"the same value whatever {what} of weight 0 hold ({ndim}D)",
                f"{values[0]!r} and {values[1]!r}",
                "multiply by weight before anything is summed, in means and scales too",
            )
            gradients = [self._gradient(one, metric) for one in (seen, other)]
            want(
                all(bool((gradient[at] == 0).all()) for gradient in gradients),
                f"gradient 0 at {what} of weight 0 ({ndim}D)",
                f"up to {max(float(g[at].abs().max()) for g in gradients):.3g}",
                "multiply by weight before anything is summed",
            )
            difference = float((gradients[1] - gradients[0]).abs().max() / gradients[0].abs().max().clamp_min(1e-300))
            want(
                difference < 1e-6,
                f"the same gradient whatever {what} of weight 0 hold ({ndim}D)",
                f"a relative change of {difference:.3g}",
                "multiply by weight before anything is summed",
            )

    def test_weight_is_a_mean(self) -> None:
        """The value is a weighted mean: it does not change when all weights are multiplied by 7 or by 0.01."""
        for ndim in self.ndims:
            pair = self.pair(ndim)
            metric = self._ready(pair)
            value = self._value(pair, metric)
            for factor in (7.0, 0.01):
                scaled = self._value(pair._replace(weight=factor * pair.weight), metric)
                want(
                    math.isclose(value, scaled, rel_tol=1e-4, abs_tol=1e-8),
                    f"the same value for {factor:g} times the weight ({ndim}D)",
                    f"{value:.6g} and {scaled:.6g}",
                    "divide by the sum of the weight",
                )
            some = pair.weight.clone()
            some.reshape(-1)[::2] *= 0.05
            want(
                not math.isclose(value, self._value(pair._replace(weight=some), metric), rel_tol=1e-9, abs_tol=1e-15),
                f"another value where every second weight is less ({ndim}D)",
                f"{value:.6g} either way",
                "take weight into account",
            )

    def test_likelihood_is_honest(self) -> None:
        """The value fits the use that the solver makes of it, according to ``likelihood``.

        False: the solver takes its logarithm, so it must not be negative. True: its differences count in nats, so they must not
        depend on the unit of intensities (or lengths).
        """
        for ndim in self.ndims:
            near, far = self._off(ndim, 0), self._off(ndim, 2)
            metric = self._ready(near)
            values = [self._value(pair, metric) for pair in (near, far)]
            if not metric.likelihood:
                small = self.pair(ndim)
                inverted = small._replace(warped=small.warped if self._of_points else 100 - small.warped)
                least = min([*values, self._value(small), self._value(inverted)])
                want(
                    least >= -1e-6,
                    "no value below 0 without likelihood = True, for its logarithm is taken",
                    f"{least:.6g}",
                    "add what makes it at least 0, or say likelihood = True if it is a log-likelihood in nats",
                )
                continue
            scaled = [pair._replace(warped=1000 * pair.warped, fixed=1000 * pair.fixed) for pair in (near, far)]
            other = self._ready(scaled[0])
            change, again = values[1] - values[0], self._value(scaled[1], other) - self._value(scaled[0], other)
            want(
                math.isclose(change, again, rel_tol=0.05),
                f"a log-likelihood whose differences are the same in any unit, since likelihood = True ({ndim}D)",
                f"{change:.6g}, and {again:.6g} for data times 1000",
                "leave likelihood False, or take scales from the data in prepare",
            )

    def test_channels_that_differ(self) -> None:
        """Three moving and two fixed channels are compared, or refused with a ValueError of one sentence."""
        if self._of_points:
            raise SkipTest("points have no channels")
        for ndim in self.ndims:
            pair = self.pair(ndim, (3, 2))

            def call(pair: Pair = pair) -> float:
                return self._value(pair)

            if refusal(call, f"3 moving and 2 fixed channels ({ndim}D)") is None:
                value = call()
                want(math.isfinite(value), "a finite value for 3 moving and 2 fixed channels", value)

    def test_order_of_points(self) -> None:
        """The value does not depend on the order of points, which are not paired."""
        if not self._of_points:
            raise SkipTest("it compares images")
        for ndim in self.ndims:
            pair = self.pair(ndim)
            metric = self._ready(pair)
            value = self._value(pair, metric)
            turned = Pair(pair.warped.flip(0), pair.fixed.roll(7, 0), pair.weight.flip(0))
            again = self._value(turned, metric)
            want(
                math.isclose(value, again, rel_tol=1e-9, abs_tol=1e-12),
                "the same value for points in another order",
                f"{value!r} and {again!r}",
                "compare every moving point with every fixed one",
            )

    # ---- gradients --------------------------------------------------------------------------------------------------

    def test_gradient(self) -> None:
        """The gradient in ``warped`` agrees with finite differences, in float64, along eight random directions."""
        for ndim in self.ndims:
            start = self.pair(ndim)
            metric = self._ready(start)
            pair = start._replace(warped=0.95 * start.warped + (0.1 if self._of_points else 1.0))
            gradient = self._gradient(pair, metric)
            want(
                gradient.shape == pair.warped.shape and bool(gradient.isfinite().all()),
                f"a finite gradient of shape {list(pair.warped.shape)}",
                f"{list(gradient.shape)}, {int((~gradient.isfinite()).sum())} entries not finite",
            )
            generator = torch.Generator().manual_seed(7)
            step = 1e-6 * float(pair.warped.std())
            expected, found = [], []
            for _ in range(8):
                direction = torch.randn(pair.warped.shape, generator=generator, dtype=torch.float64)
                ends = [
                    self._value(pair._replace(warped=pair.warped + sign * step * direction), metric) for sign in (1, -1)
                ]
                expected.append((ends[0] - ends[1]) / (2 * step))
                found.append(float((gradient * direction).sum()))
            scale = max(map(abs, expected))
            want(scale > 0, f"a value that moves with warped ({ndim}D)", "a constant", "is it rounded somewhere?")
            worst = max(range(8), key=lambda i: abs(expected[i] - found[i]))
            want(
                abs(expected[worst] - found[worst]) <= 1e-3 * scale,
                f"the gradient of finite differences ({ndim}D, float64)",
                f"{found[worst]:.6g} where they say {expected[worst]:.6g}",
                "look for .detach(), rounding, or a backward of your own",
            )

    def test_float32(self) -> None:
        """Value and gradient in float32 agree with those in float64, up to rounding."""
        for ndim in self.ndims:
            exact = self.pair(ndim)
            single = exact.to(torch.float32)
            self._compare(exact, single, f"float32 ({ndim}D)", 1e-3, 2e-2)

    def _compare(self, exact: Pair, other: Pair, where: str, value_tolerance: float, gradient_tolerance: float) -> None:
        metrics = self._ready(exact), self._ready(other)
        # move the values off those the metric was prepared with, where rounding could push them out of a range
        exact, other = (pair._replace(warped=0.95 * pair.warped + 1) for pair in (exact, other))
        values = [self._value(pair, metric) for pair, metric in zip((exact, other), metrics, strict=True)]
        want(
            math.isclose(*values, rel_tol=value_tolerance, abs_tol=value_tolerance * 1e-2),
            f"the value of float64 on {where}",
            f"{values[1]:.8g} for {values[0]:.8g}",
        )
        gradients = [
            self._gradient(pair, metric).to("cpu", torch.float64)
            for pair, metric in zip((exact, other), metrics, strict=True)
        ]
        error = float((gradients[1] - gradients[0]).abs().max() / gradients[0].abs().max().clamp_min(1e-300))
        want(
            error <= gradient_tolerance,
            f"the gradient of float64 on {where}",
            f"an error of {error:.3g} of its largest entry",
            "do not cancel large sums in float32",
        )

    def test_cuda(self) -> None:
        """Value and gradient on a CUDA device agree with those on the CPU; skipped without such a device."""
        if not torch.cuda.is_available():
            raise SkipTest("no CUDA device here")
        for ndim in self.ndims:
            exact = self.pair(ndim)
            self._compare(exact, exact.to(torch.device("cuda")), f"CUDA ({ndim}D)", 1e-6, 1e-6)

    def test_without_a_gradient(self) -> None:
        """The value does not change under ``torch.no_grad``."""
        for ndim in self.ndims:
            pair = self.pair(ndim)
            metric = self._ready(pair)
            with_graph = float(metric(pair.warped.clone().requires_grad_(True), pair.fixed, pair.weight).detach())
            without = self._value(pair, metric)
            want(
                math.isclose(with_graph, without, rel_tol=1e-9, abs_tol=1e-12),
                "the same value with and without a graph",
                f"{with_graph!r} and {without!r}",
            )

    # ---- state ------------------------------------------------------------------------------------------------------

    def test_deterministic(self) -> None:
        """A repeated call gives the same value, whatever was computed in between."""
        for ndim in self.ndims:
            pair, other = self.pair(ndim), self.pair(ndim, seed=9)
            metric = self._ready(pair)
            first = self._value(pair, metric)
            self._value(other, metric)
            self._gradient(pair, metric)
            again = self._value(pair, metric)
            fresh = self._value(pair)
            want(
                first == again == fresh,
                "the same value for the same call, every time",
                f"{first!r}, {again!r} after other calls, {fresh!r} from a new instance",
                "keep no state of warped, and seed what is random",
            )

    def test_inputs_are_left_alone(self) -> None:
        """Neither ``prepare`` nor a call modifies its arguments."""
        for ndim in self.ndims:
            pair = self.pair(ndim)
            before = Pair(*(t.clone() for t in pair))
            metric = self.make()
            metric.prepare(self._side(pair.fixed), self._side(pair.warped))
            self._value(pair, metric)
            self._gradient(pair, metric)
            for name, now, then in zip(pair._fields, pair, before, strict=True):
                want(torch.equal(now, then), f"{name} as it was", "other values", "no in-place operations on it")

    def test_prepare_for_every_level(self) -> None:
        """One instance can be prepared for several pyramid levels, of other size and weight; the last preparation counts."""
        for ndim in self.ndims:
            coarse, fine = self._off(ndim, 0), self.pair(ndim)
            metric = self.make()
            if self._of_points:
                metric.prepare(self._side(coarse.fixed[:20]), self._side(coarse.warped[:15]))
            else:
                # the two sides have different grids, and either may have a mask
                cut = coarse.warped[:, 3:].repeat(2, *(1,) * ndim)
                metric.prepare(
                    self._side(coarse.fixed.repeat(2, *(1,) * ndim), coarse.weight),
                    self._side(cut, torch.ones_like(cut[0])),
                )
            metric.prepare(self._side(fine.fixed), self._side(fine.warped))
            again, fresh = self._value(fine, metric), self._value(fine)
            want(
                math.isclose(again, fresh, rel_tol=1e-9, abs_tol=1e-12),
                "the value of a new instance after prepare was called twice",
                f"{again!r} for {fresh!r}",
                "let prepare forget what it knew",
            )

    # ---- in use -----------------------------------------------------------------------------------------------------

    def test_fused(self) -> None:
        """The value and gradients of a fused kernel, if there is one, agree with a call on the warped image."""
        if type(self.make()).fused is Metric.fused:
            raise SkipTest("it has no fused")
        asked = False
        for ndim in self.ndims:
            for dtype in (torch.float32, torch.float64):
                path, moving, fixed, weight = self._way(ndim, dtype)
                metric = self.make()
                metric.prepare(self._side(fixed), self._side(moving))
                got = metric.fused(path, moving, fixed, weight)
                if got is None:
                    continue
                asked = True
                velocity, matrix = path.velocity.clone().requires_grad_(True), path.matrix.clone().requires_grad_(True)
                value = metric(ops.warp(moving, *path._replace(velocity=velocity, matrix=matrix)), fixed, weight)
                wanted = (value.detach(), *torch.autograd.grad(value, (velocity, matrix)))
                where = f"({ndim}D, {dtype})"
                for name, now, then in zip(
                    ("value", "gradient in velocity", "gradient in matrix"), got, wanted, strict=True
                ):
                    want(now.shape == then.shape, f"a {name} of shape {list(then.shape)} {where}", list(now.shape))
                    error = float(
                        (now.double() - then.double()).abs().max() / then.double().abs().max().clamp_min(1e-300)
                    )
                    want(
                        error < 2e-3,
                        f"from fused the {name} of a call on the warped image {where}",
                        f"a relative error of {error:.3g}",
                    )
        if not asked:
            raise SkipTest("its fused returned None throughout")

    def _way(self, ndim: int, dtype: torch.dtype) -> tuple[ops.Path, Tensor, Tensor, Tensor]:
        """A bent path into a moving image of another size; that image, the fixed image, and a weight that is partly 0."""
        generator = torch.Generator().manual_seed(5)
        shape = _LARGE[ndim]
        moving = self.texture(ndim).to(dtype).repeat(2, *(1,) * ndim)
        moving[1] = moving[1].flip(-1)
        fixed = self.texture(ndim, 1).to(dtype)[:, 1:, :-2].repeat(2, *(1,) * ndim)
        weight = torch.rand(tuple(fixed.shape[1:]), generator=generator, dtype=torch.float64).to(dtype)
        weight[2:5] = 0.0
        velocity = 0.8 * torch.randn((2, ndim, *(5,) * ndim), generator=generator, dtype=torch.float64).to(dtype)
        matrix = torch.eye(ndim, ndim + 1, dtype=torch.float64)
        matrix += 0.02 * torch.randn(matrix.shape, generator=generator, dtype=torch.float64)
        spacing = tuple((n - 1) / 4 for n in shape)
        ones, zeros = (1.0,) * ndim, (0.0,) * ndim
        path = ops.Path(velocity, matrix, tuple(fixed.shape[1:]), (0,) * ndim, ones, zeros, spacing, zeros, 4)
        return path, moving, fixed, weight

    def test_aligns_a_pair(self) -> None:
        """`regframe.register` with this metric aligns a shifted 2D pair to within a third of a pixel."""
        if self._of_points:
            raise SkipTest("it compares points")
        if 2 not in self.ndims:
            raise SkipTest("it is not for 2D images")
        from ..registration import register

        fixed, moving = (self.texture(2, shift).to(torch.float32) for shift in (0, 2))
        sides = [Image(data, Grid(tuple(data.shape[1:]))) for data in (fixed, moving)]
        result = register(*sides, metric=self.make(), init="identity", transform="rigid")
        at = result.fixed_grid.coords()
        error = float((result.to_moving(at) - (at - 2)).norm(dim=-1).mean())
        want(
            error < 1 / 3,
            "a pair that is 2 pixels off along both axes to be aligned within 0.33 px",
            f"{error:.3g} px after {result.metrics['n_evaluations']} evaluations",
            "look at the checks above first",
        )
