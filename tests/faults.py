"""Deliberate faults in the functions that everything else is trusted on, and the tests that must fail of each.

Moments, replacements, energies, bounds, certificates, edits, the equivalence check, the correction. A fault is a
fragment of one function and what stands for it; `tests/mutations.py` puts each in, one at a time. Faults are mistakes that
somebody could make: a sign, a square root, a transpose, the wrong one of two similar things.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FAULTS", "Fault"]


@dataclass(frozen=True)
class Fault:
    """One deliberate fault.

    Attributes:
        file: below src/coreprune. function: its qualified name.
        old: a fragment that occurs once in the function. new: what stands for it.
        what: the fault in words.
        tests: pytest node ids, of which one must fail.
    """

    file: str
    function: str
    old: str
    new: str
    what: str
    tests: tuple[str, ...]


def _of(file: str, *tests: str, rows: str) -> list[Fault]:
    """Faults of one file, three lines each: `function | what`, the old fragment, the new one."""
    lines = [line.strip() for line in rows.strip().splitlines() if line.strip()]
    assert len(lines) % 3 == 0, f"{file} has a row that is not complete"
    found = []
    for head, old, new in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        function, what = (part.strip() for part in head.split("|", 1))
        found.append(Fault(file, function, old, "" if new == "(nothing)" else new, what, tests))
    return found


#: the quick ones of the tests of worst cases
WORST_CASE = {
    what: [f"tests/maths/test_worst_case.py::{name}" for name in names.split()]
    for what, names in {
        "domain": """
            test_enclosure_holds_where_the_pre_activation_loses_all_its_digits test_support_is_the_farthest_that_a_row_goes
            test_linear_difference_is_bounded_to_nine_digits_from_the_right_side
            """,
        "layers": """
            test_drift_counts_a_rounded_bias test_one_changed_output_leaves_the_others_at_zero
            test_rows_that_were_not_kept_as_claimed_are_not_believed test_rounded_rows_drift_and_jumps_never_do
            test_enclosure_adds_the_uncertainty_of_all_three_parts
            test_linear_difference_is_bounded_to_nine_digits_from_the_right_side test_keeping_everything_is_exactly_zero
            test_lower_and_upper_enclose_the_grid_in_low_dimension
            """,
        "units": """
            test_no_cell_strays_further_from_its_chord_than_it_says
            test_cells_cover_the_interval_and_show_both_sides_of_a_jump test_quadratic_supremum_is_sound_and_tight
            test_offset_is_above_a_dense_grid test_float64_code_of_the_activation_is_as_exact_as_assumed
            test_any_slope_and_bend_give_a_true_bound test_a_slightly_wrong_bound_is_caught
            """,
    }.items()
}

GRAM = [
    f"tests/maths/test_gram.py::{name}"
    for name in [
        "test_perfectly_correlated_units",
        "test_rectangles_agree_with_the_square",
        "test_thousand_random_pairs_against_quadrature",
    ]
]
EQUIVALENCE = [
    f"tests/engine/test_equivalence.py::{name}"
    for name in [
        "test_the_distance_is_that_of_the_worst_output_in_shares_of_its_own_largest_entry",
        "test_reconstruction_is_the_formula",
        "test_one_matrix_for_every_entry_of_a_unit_and_one_weight_for_every_unit",
        "TestCheck",
    ]
]
CORRECTION = [
    f"tests/engine/test_correction.py::{name}"
    for name in [
        "test_readers_of_dense_shape_compute_what_the_cut_network_does",
        "test_units_that_are_constant_go_without_a_correction",
        "test_few_values_say_nothing",
        "test_statistics_move_as_those_of_the_cut_network_do",
    ]
]

FAULTS = [
    # ------------------------------------------------------------ moments
    *_of("maths/products.py", "tests/maths/test_products.py", rows="""
        product | what oneDNN gives is transposed
        reshape(n, m).T
        reshape(m, n)
        quick | rows that lie apart in columns are taken for rows
        A.stride(1) == B.stride(1) == 1
        True
        """),
    *_of("maths/streaming.py", "tests/maths/test_streaming.py", rows="""
        Stream.add | the scatter is about zero, not about the batch's mean
        self._take(new - mean[..., None, :], mean)
        self._take(new, mean)
        Stream._take | a batch moves the covariance as if it were alone
        (self.count * new / total, gap)
        (new * new / total, gap)
        Stream._take | the running mean weighs a batch by what was seen before
        gap * (new / total)
        gap * (self.count / total)
        Stream._take | what a scatter's centre is off by is added, not taken away
        (-float(new), off)
        (float(new), off)
        Stream._end | terms that were added are added again
        self._ends = []
        pass
        Stream.moments | divided by the count less one
        mirrored(self._scatter) / self.count
        mirrored(self._scatter) / max(self.count - 1, 1)
        finite | infinity passes as a number
        torch.isfinite(values).all()
        ~torch.isnan(values).any()
        add_squared | strips begin with the first column
        A[:, start:stop], A[:, start:], beta
        A[:, start:stop], A[:, : len(total) - start], beta
        add_squared | what is summed up in strips begins anew with every batch
        A[:, start:], beta
        A[:, start:], 0
        mirrored | what is below the diagonal stays as it was
        total[stop:, start:stop] = total[start:stop, stop:].T
        pass
        """),
    *_of("maths/hermite.py", "tests/maths/test_hermite.py", rows="""
        Expansion.variance | the tail enters unsquared
        self.tail.square()
        self.tail
        expand | the mean counts as variance
        rest = variance - c[:, 1:].square().sum(1)
        rest = variance - c.square().sum(1)
        derivative | the square root of k + 1 is forgotten
        c[:, 1:] * k.sqrt() * inverse
        c[:, 1:] * k * inverse
        second_moments | the magnitude of z for z in E φ² z
        (weight * z).sum(1)
        (weight * z.abs()).sum(1)
        _variance | about zero
        (h - centre[rows, None]).square()
        h.square()
        _spline_coefficients | the ramp has the wrong sign of g Q
        [s * pdf - g * Q
        [s * pdf + g * Q
        _spline_coefficients | the bowl has s² − g²
        (s.square() + g.square()) * Q
        (s.square() - g.square()) * Q
        _spline_coefficients | coefficients of the step are not divided by √k
        [Q, h[:, :-1] / root]
        [Q, h[:, :-1]]
        _quadrature_coefficients | the recurrence divides by √(k + 2)
        .div_(math.sqrt(k + 1))
        .div_(math.sqrt(k + 2))
        _panels | the density lacks its half
        torch.exp(-z.square() / 2)
        torch.exp(-z.square())
        _panels | quadrature goes across the knots
        sorted({*phi.knots, *bend})
        sorted({0.0, *bend[:6]})
        _standardised | a constant unit at a knot counts as below it
        torch.where(gap > 0, 40.0, -40.0)
        torch.where(gap >= 0, 40.0, -40.0)
        """),
    *_of("maths/gram.py", *GRAM, rows="""
        gaussian_moments | variances for standard deviations
        covariance.diagonal().clamp(min=0).sqrt()
        covariance.diagonal().clamp(min=0)
        correlation | negative correlations are lost
        rho.clamp_(-1, 1)
        rho.clamp_(0, 1)
        cross_covariance | the left units stand on both sides
        addr_(c[rows, k], d[columns, k])
        addr_(c[rows, k], c[columns, k])
        cross_covariance | the tail is forgotten
        total = torch.outer(tail[rows], other[columns])
        total = torch.zeros_like(r)
        cross_covariance | deviations on the diagonal
        variance = left.variance.to(rho.dtype)
        variance = left.variance.sqrt().to(rho.dtype)
        cross_covariance | the last power of ρ is left out
        rho[rows, columns] = total.mul_(r)
        rho[rows, columns] = total
        """),
    *_of("maths/propagate.py", "tests/maths/test_propagate.py", rows="""
        Component.linear | the bias is left out
        P @ mean + b
        P @ mean
        Component.linear | variances of independent features enter unsquared rows
        (P * C) @ P.T
        (P * C.sqrt()) @ P.T
        Pair.overall | a mixture's means spread about zero
        torch.outer(c.mean - mean, c.mean - mean)
        torch.outer(c.mean, c.mean)
        law_of | Cov(h̃, h) for Cov(h, h̃)
        mean[:n], spread[:n, n:]
        mean[:n], spread[n:, :n]
        difference_energy | the covariance of both outputs is counted once
        - 2 * spread[:p, p:]
        - spread[:p, p:]
        difference_energy | the difference of the means is left out
        + (mean[:p] - mean[p:]).square()
        (nothing)
        """),
    # ------------------------------------------------------------ replacement and its error
    *_of("maths/reweight.py", "tests/maths/test_reweight.py", rows="""
        solve | the right side is not scaled to correlations
        (B * scale).mT
        B.mT
        solve | a ridge a million times larger
        RIDGE[G.dtype] if ridge is None else ridge
        1e6 * RIDGE[G.dtype] if ridge is None else ridge
        replacement | X is taken for G where units have moved
        X = G if law.cross is None else law.cross
        X = G
        replacement | the mean of the units as they are for that of the dense ones
        target = law.moments.mean if law.target is None else law.target
        target = law.moments.mean
        replacement | the constant has the wrong sign
        target - T @ law.moments.mean[S]
        target + T @ law.moments.mean[S]
        _turned | the constant goes by the means of other units
        mean[:n] - T @ mean[n:]
        mean[:n] - T @ mean[:k]
        residual_energy | true of optimal weights alone
        variance - 2 * mixed + kept
        variance - mixed
        residual_energy | the dense covariance is taken for that of the units as they are
        own = G if law.own is None else law.own
        own = G
        residual_energy | the constant is forgotten
        - coreset.constant(W)
        (nothing)
        residual_energy | the error of the mean is forgotten
        .clamp(min=0) + gap.square(), variance
        .clamp(min=0), variance
        """),
    *_of("maths/select.py", "tests/maths/test_readers.py", rows="""
        forward | what the ridge leaves of a copy is something new
        rest + COPY * ridge
        rest
        """),
    *_of("maths/blocks.py", "tests/maths/test_blocks.py", rows="""
        backward_blocks | what the other units can take over is forgotten
        torch.cholesky_solve(_diagonal(energy_of, b), inner)
        _diagonal(energy_of, b)
        backward_blocks | what a unit takes over does not count as its own
        - side - side.T + E.T @ energy_of[B, B] @ E
        - side - side.T
        """),
    *_of("maths/select.py", "tests/maths/test_beside.py", rows="""
        dropped_beside | halves of the energies are whole ones
        state[:, 1] /= 2
        state[:, 1] /= 1
        dropped_beside | a unit without variance goes like any other
        clear &= state[each, 0, j] > 0
        clear &= True
        """),
    *_of("maths/beside.py", "tests/maths/test_beside.py", rows="""
        rows_at | all rows are the first matrix's
        at + first[:, None]
        at + 0 * first[:, None]
        """),
    *_of("maths/layer.py", "tests/maths/test_beside.py", rows="""
        changed | a kept unit that changes is overlooked
        if not bool(differs.any()):
        if kept.dim() > 1 or not bool(differs.any()):
        """),
    *_of("maths/kernel.py", "tests/maths/test_beside.py", rows="""
        backwards_beside | sites with units that do not vary are taken in
        .all(1)
        .any(1)
        backwards_beside | readers' products are not scaled as correlations are
        M / both
        M
        """),
    *_of("engine/cutting.py", "tests/engine/test_network.py", rows="""
        in_groups | sites that keep another number of units are taken in
        (site.units, widths[site.name])
        (site.units, 0)
        """),
    *_of("maths/reading.py", "tests/maths/test_readers.py", rows="""
        beside | the first covariance is taken for all
        readings[i].covariance
        readings[group[0]].covariance
        Reading.spread | an energy about zero is taken for the spread
        self.about is None
        True
        Reading.gram | only the last piece of a large weight counts
        add_squared(total, rows.T)
        add_squared(total, rows.T, beta=0)
        """),
    *_of("maths/readers.py", "tests/maths/test_readers.py", rows="""
        _gaps | the constant is the mean itself
        m - (T @ rows_at(m[:, :, None], entries))[:, :, 0]
        m
        errors | true of optimal weights alone
        2 * X - _times(T, inside)
        X
        _narrow_error | what stays as it is counts as changed
        inner(V, Y[:, at]) - inner(Z, VX[:, stays])
        inner(V, Y[:, at])
        _narrow_error | true of optimal weights alone
        2 * VX - VT @ inside
        VX
        errors | the error of the mean is forgotten
        clamp(min=0) + outside
        clamp(min=0)
        errors | the constant of the coreset is added, not taken away
        gap -= stacked
        gap += stacked
        """),
    *_of("maths/kernel.py", "tests/maths/test_kernel.py", rows="""
        replaced | weights are left in units of the kept units' deviations
        deviation[gone, None] / deviation[path.kept]
        deviation[gone, None]
        replaced | the constant has the wrong sign
        law.moments.mean - T @ law.moments.mean[path.kept]
        law.moments.mean + T @ law.moments.mean[path.kept]
        """),
    # ------------------------------------------------------------ bounds and certificates
    *_of("maths/bounds.py", "tests/maths/test_bounds.py", rows="""
        lipschitz_sensitivity | φ(0) is forgotten
        abs(phi.at_zero) + phi.lipschitz
        phi.lipschitz
        lipschitz_sensitivity | the query's last entry, 1, is forgotten
        layer.query_radius
        layer.radius
        total_sensitivity | the mean over the draws for the worst of them
        .max()) if bool
        .mean()) if bool
        _constant | one sign of the deviation is forgotten
        math.log(2 * outputs / delta)
        math.log(outputs / delta)
        size_for_error | the size grows like 1/ε, not 1/ε²
        / error) ** 2)
        / error))
        error_of_draws | the error falls like 1/m, not 1/√m
        math.sqrt(draws)
        draws
        output_variance | the second moment for the variance
        (second - layer(x).square()) / draws
        second / draws
        """),
    *_of("maths/certificate.py", "tests/maths/test_certificate.py", rows="""
        chebyshev | the square root is forgotten
        math.sqrt(mean_square / probability)
        mean_square / probability
        relative_error | squares for roots
        math.sqrt(error / total)
        error / total
        clopper_pearson | the lower bound's shape
        failures + 1, trials - failures
        failures + 1, trials - failures + 1
        clopper_pearson | both sides share δ
        1 - delta))
        1 - delta / 2))
        """),
    *_of("maths/domain.py", *WORST_CASE['domain'], rows="""
        OneLayer.enclosure | rounding of the pre-activations is left out
        low, high = self.activation.range(z - error, z + error)
        low, high = self.activation.range(z, z)
        Ball.support | a ball of radius 1 whatever was asked
        length * (self.radius * (1 + gamma(rows.shape[1] + 8)))
        length * (1 + gamma(rows.shape[1] + 8))
        Box.support | the lower end is forgotten
        torch.maximum(self.lower.abs(), self.upper.abs())
        self.upper.abs()
        Box.units | inputs vary about zero, not about the centre
        bias = layer.bias + rows @ self.centre
        bias = layer.bias
        """),
    *_of("maths/worst_case.py", *WORST_CASE['layers'], rows="""
        Residual.__call__ | rounded rows are counted with the wrong sign
        (self.before(x) - self.after(x))
        (self.after(x) - self.before(x))
        Residual.drift | rounding of the biases is forgotten
        shift = shift + (self.before.bias - self.after.bias).abs()
        shift = shift + 0
        residual | what both layers share is doubled, not cancelled
        small.outgoing[:, shared], alpha=-1
        small.outgoing[:, shared], alpha=1
        residual | units of the small layer alone are added
        -small.outgoing[:, ~shared]
        small.outgoing[:, ~shared]
        residual | the small layer's constant is forgotten
        dense.constant - small.constant
        dense.constant
        _compare | rows that differ in the bias alone count as the same
        & (small.bias == dense.bias[kept])
        (nothing)
        upper_bound | the smaller of both signs
        .view(2, -1).amax(0)
        .view(2, -1).amin(0)
        upper_bound | the constant is forgotten
        torch.cat(bounds) + constants
        torch.cat(bounds) + 0 * constants
        lower_bound | the far end of what was enclosed
        torch.maximum(low, -high)
        torch.maximum(high, -low)
        """),
    *_of("maths/relax.py", *WORST_CASE['units'], rows="""
        cells | half of the error of a chord
        .square() / 8
        .square() / 16
        cells | intervals are not cut at the knots
        *(torch.full_like(lower, knot) for knot in phi.knots)
        *(torch.full_like(lower, knot) for knot in phi.knots[1:])
        offset | the error of the chord is forgotten
        weight * chord + size * error
        weight * chord
        quadratic_supremum | a quarter for a half
        ((g + e) * x).sum(1) / 2
        ((g + e) * x).sum(1) / 4
        _linear_supremum | negative bends lower the bound
        bend.clamp(min=0) @ norms
        bend @ norms
        read_error | no allowance for the activation's own rounding
        PHI_ULPS * UNIT_ROUNDOFF * lipschitz
        0 * UNIT_ROUNDOFF * lipschitz
        """),
    # ------------------------------------------------------------ edits
    *_of("model/site.py", "tests/surgery/test_edits.py", rows="""
        Location.positions | entries of several units interleave
        each.reshape(units, self.span)
        each.reshape(self.span, units).T
        Location.positions | an order of its own is ignored
        np.array(self.order)
        np.array(sorted(self.order))
        """),
    *_of("surgery/edits.py", "tests/surgery/test_edits.py", rows="""
        Mix.places | new units take the first places
        if self.indices is None:
        if True:
        Add.__call__ | entries of the dense bias are taken for those that are left
        at if alive is None
        at if True
        constant | the sign of the reader is forgotten
        torch.cat(result) * first.sign
        torch.cat(result)
        constant | one kernel position for their sum
        each.sum(2) if each.shape[2] > 1 else
        each[:, :, 0] if each.shape[2] > 1 else
        _cut | mixed before it is rounded, but to the tensor's own precision each time
        goal if last and goal else mixing[1].dtype
        goal if goal else mixing[1].dtype
        """),
    *_of("surgery/mixing.py", "tests/surgery/test_edits.py", rows="""
        Mixing.__call__ | units that stay no longer stand for themselves
        torch.baddbmm(owned, matrix.mT, units)
        torch.baddbmm(0 * owned, matrix.mT, units)
        Mixing.__call__ | factors are left out
        * matrix.reshape(-1, *[1] * units.dim())
        (nothing)
        Mixing.__call__ | what is not mixed is not copied
        selected(old, 0, before))
        0 * selected(old, 0, before))
        _part | units that go are those of the first matrix
        mask.nonzero()[1].reshape(len(many), -1)
        mask.nonzero()[1].reshape(len(many), -1)[:1].repeat(len(many), 0)
        _part | one unit that stands for itself is enough
        fixed(T, torch.from_numpy(kept).to(T.device))
        True
        Layout.take | units are taken in ascending order whatever was asked
        source[goal] = entries[indices]
        source[goal] = goal
        Layout._entries | two edits may change the same entries
        assert not self._touched[entries].any()
        assert True
        Layout._entries | an edit may change what is gone
        assert there[entries].all()
        assert True
        """),
    *_of("plan.py", "tests/surgery/test_edits.py", "tests/test_plan.py", rows="""
        reading | factors of kept units are taken for ones
        and coreset.mix.dim() == 1 and bool((coreset.mix == 1).all()):
        and coreset.mix.dim() == 1:
        Cut.owning | further owners of the units stay as they are
        *([site.bias] if there else []), *site.others]
        *([site.bias] if there else [])]
        """),
    # ------------------------------------------------------------ the check after every cut
    *_of("engine/masking.py", *EQUIVALENCE, rows="""
        reconstructed | the constant is forgotten
        torch.addmm(offset, mix, left)
        mix @ left
        reconstructed | the first units are taken for the kept ones
        kept = coreset.indices.to(device)
        kept = torch.arange(coreset.units, device=device)
        _spread_out | entries of a unit and units change places
        torch.kron(mix, torch.eye(each, dtype=mix.dtype, device=mix.device))
        torch.kron(torch.eye(each, dtype=mix.dtype, device=mix.device), mix)
        """),
    *_of("model/untouched.py", "tests/model/test_untouched.py", rows="""
        untouched.__exit__ | what the code laid by stays
        del own[name]
        pass
        untouched.__exit__ | containers keep what was put in
        value.clear()
        pass
        _attributes | hooks are left as they are
        if name not in _TENSORS
        if name not in _TENSORS and "hooks" not in name
        holding | tensors that are held stay where two names lead to them
        table.update(entries)
        pass
        drawing | what the code draws does not follow the seed
        seed % 2**63
        torch.seed()
        """),
    *_of("model/untouched.py", "tests/model/test_sparing.py", rows="""
        sparing | what was written into stays
        held.buffer.copy_(held.value)
        pass
        sparing | the first model alone is looked after
        for one in (model, *args) if
        for one in (model,) if
        """),
    *_of("engine/feasible.py", "tests/engine/test_feasible.py", rows="""
        feasible | one group of heads that is fixed takes all others with it
        dict.fromkeys(group, why)
        dict.fromkeys(by_name, why)
        _outline | the copy keeps the attributes of the whole network
        follow(model, cuts)
        []
        _tried | what the last graph says is all
        (why for why in whys if why is not None)
        (why for why in list(whys)[-1:] if why is not None)
        _Trial.smaller | heads that shrink are no matter
        return any(
        return False and any(
        _misfit | a merged width that shrinks counts as smaller heads
        a[-1] in sizes and
        True and
        """),
    *_of("engine/observe.py", "tests/engine/test_observe.py", rows="""
        _beside | readers of one value see what the first one sees
        torch.cat([reader[0].entries for reader in group.values()])
        torch.cat([first[0].entries for reader in group.values()])
        """),
    *_of("engine/equivalence.py", "tests/engine/test_equivalence.py", rows="""
        _difference | networks of any size are widened at once
        by_itself = few and
        by_itself = True and
        """),
    *_of("model/shapes.py", "tests/model/test_shapes.py", rows="""
        _convolved | the last window is lost
        // s + 1 if
        // s if
        _joined | sizes along other axes do not matter
        r != rest[0]
        False
        """),
    *_of("engine/equivalence.py", *EQUIVALENCE, rows="""
        require | a thousandth is taken for rounding
        if not difference <= tolerance
        if not difference <= 1e-3
        check | only the last graph counts
        worst = max(worst, _difference(dense, small_model, captured, pairs, tensors64))
        worst = _difference(dense, small_model, captured, pairs, tensors64)
        _distance | the last output decides
        worst = max(worst, gap / (size or 1.0))
        worst = gap / (size or 1.0)
        _distance | NaN agrees with anything
        if not bool((a.isfinite() & b.isfinite() | same).all()):
        if False:
        _distance | errors are divided by their own size
        size = float(a.abs().masked_fill(~a.isfinite(), 0.0).max())
        size = float((a - b).abs().max()) * 1e12
        """),
    # ------------------------------------------------------------ the correction of BatchNorms
    *_of("engine/correction.py", *CORRECTION, rows="""
        as_cut | readers have ones for units that went
        value.new_zeros(shape)
        value.new_ones(shape)
        corrections | a constant that the cut put into the running mean is counted twice
        (m_cut - put, v_cut)
        (m_cut, v_cut)
        corrections | few values suffice
        if before.count(norm) < FEWEST
        if before.count(norm) < 1
        _taken_over | the square root of the running variance is forgotten
        shift * running.sqrt()
        shift * running
        _taken_over | the variance changes the wrong way
        change * running
        -change * running
        """),
    *_of("engine/norms.py", "tests/engine/test_correction.py", rows="""
        _Sums.both | second moments for variances
        self.squares / self.count - mean.square()
        self.squares / self.count
        """),
    *_of("engine/norms.py", "tests/engine/test_norms.py", rows="""
        normalised | the running variance, which the output had in training, is forgotten
        torch.where(moves, v / variance, 1.0) * spread
        torch.where(moves, v, spread)
        normalised | constant channels have no statistics
        own = torch.where(moves, m, mean)
        own = m
        """),
    *_of("maths/beside.py", "tests/maths/test_beside.py", rows="""
        stacked | what lies between is not looked for
        value.data_ptr() == first.data_ptr() + i * step and
        value.data_ptr() >= first.data_ptr() and
        stacked | matrices that lie across are taken as they are
        beside and value.is_contiguous()
        beside
        """),
    # ------------------------------------------------------------ massive units
    *_of("maths/outliers.py", "tests/maths/test_outliers.py", "tests/engine/test_massive.py", rows="""
        brought | what a reader weighs is forgotten
        torch.cat(variances).double() * torch.cat(squares).double()
        torch.cat(variances).double()
        brought | the largest reader decides
        found / found.sum(1, keepdim=True).clamp(min=1e-300)
        found
        massive | the smallest units are massive
        np.argsort(-known, kind="stable")
        np.argsort(known, kind="stable")
        massive | a typical unit is the mean of all
        known[order[few:]].mean()
        known.mean()
        first_of | those of the path come first
        torch.cat([first, ranked, torch.arange(units, device=ranked.device)])
        torch.cat([ranked, first, torch.arange(units, device=ranked.device)])
        """),
    # ------------------------------------------------------------ what a cut costs the whole network
    *_of("engine/shares.py", "tests/engine/test_shares.py", rows="""
        lost | gradients at the cut network, not halfway
        torch.full((len(sites),), 0.5, requires_grad=True)
        torch.full((len(sites),), 1.0, requires_grad=True)
        _divergence | the divergence the other way round
        total += float(((p - q) * p.exp()).double().sum())
        total += float(((q - p) * q.exp()).double().sum())
        _divergence | the gradient points the other way
        into.copy_(q.exp_().sub_(p.exp_()))
        into.copy_(p.exp_().sub_(q.exp_()))
        _error | half the gradient
        (2 * (b - a) / energy)
        ((b - a) / energy)
        """),
    *_of("engine/driven.py", "tests/engine/test_driven.py", rows="""
        largest | what was too much before it was shared out better is never tried again
        beyond = beyond if math.isinf(beyond.loss) else Tried(1.0, math.inf)
        pass
        between | other trials say nothing of how the loss grows
        next((power for one in known if (power := near.power(one)) > 0), POWER)
        POWER
        between | without a trial at either end the middle is next
        (within, beyond, *before[::-1])
        (within, beyond)
        """),
    # ------------------------------------------------------------ units that turn
    *_of("engine/descent.py", "tests/engine/test_turning.py", rows="""
        split | what is held back is descended on too
        learnt.append((one, (~at).nonzero()[:, 0]))
        learnt.append((one, torch.arange(rows)))
        weighed | massive inputs weigh by their size
        1 / wanted.square().sum(axis).clamp(min=float(usual))
        1 / usual
        """),
    *_of("engine/alone.py", "tests/engine/test_turning.py", rows="""
        Alone.result | a site is turned whether its error falls or not
        if not after.weighed < before.weighed:
        if False:
        Alone.result | the error is that of the inputs descended on
        after = self.kept.left(leaves, self.back)
        after = self.kept.left(leaves, self.learnt)
        """),
    *_of("engine/kept.py", "tests/engine/test_turning.py", rows="""
        Kept._shifts | what the cut removes is moved too
        new = dense.clone()
        new = dense * 1.01
        works | sites that share a tensor both turn
        own & taken
        False
        """),
    *_of("engine/turning.py", "tests/engine/test_turning_norms.py", rows="""
        follows | cuts that share a tensor follow each other all the same
        not noise and len(set(tensors)) == len(tensors)
        not noise
        _Run.__init__ | the cut network starts without its corrected statistics
        held = {**start, **as_cut(cuts, start)}
        held = {**tensors, **as_cut(cuts, tensors)}
        """),
    *_of("engine/kept.py", "tests/engine/test_turning_norms.py", rows="""
        Kept.turned | what a running mean took up is forgotten
        {**self.told, **leaves}
        leaves
        _end | outputs are compared before their BatchNorm
        len(bias.users) == 1
        False
        """),
    *_of("engine/together.py", "tests/engine/test_together.py", rows="""
        _windows | every site is a window of its own
        len(current.works) < most
        not current.works
        _behind | a window ends where a reader writes, not where all meets again
        if live == {node} and isinstance(node.meta.get("val"), Tensor):
        if found is None and isinstance(node.meta.get("val"), Tensor) and "linear" in node.name:
        Together.result | sites are turned whether their error falls or not
        if not after < before:
        if False:
        put | what makes the kept units is left as it was
        return {**moved, **as_cut(
        return {**as_cut(
        """),
    *_of("engine/runner.py", "tests/engine/test_together.py", rows="""
        _as_many | a view has as many rows as the example had
        return (value, [len(value), *sizes[1:]], *rest)
        return args
        Steps.put | the tensors stay those of the start
        runner.env[node] = tensors[name].detach().to(value)
        pass
        """),
    *_of("engine/schedule.py", "tests/engine/test_schedule.py", rows="""
        scheduled | all that stands before a value is computed with it
        waiting = [by_name[name] for name in names]
        waiting = nodes[: 1 + max(nodes.index(by_name[name]) for name in names)]
        scheduled | what is written into a value is forgotten
        waiting += before[node]
        waiting += node.all_input_nodes
        _before | a write does not wait for what reads before it
        result[node] |= readers.pop(value, set())
        pass
        _source | a piece has memory of its own
        value.target is operator.getitem or aliases(value.target)
        aliases(value.target)
        """),
    *_of("engine/runner.py", "tests/engine/test_turning.py", rows="""
        part_between | a part may be used from outside
        if any(user not in needed and not asserts(user) for node in between for user in node.users):
        if False:
        Steps.values | nothing is let go
        if not self._left[name]]
        if False]
        """),
    *_of("plan.py", "tests/engine/test_turning.py", rows="""
        Plan.edits | constants are those of weights that have not turned
        reading(self.cuts, dense)
        reading(self.cuts, tensors)
        """),
]  # fmt: skip
