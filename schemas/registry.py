"""Every routine of the service, one line each."""

from schemas.routine import Routine
from schemas.spatial import align, center, map_cells, multiomics, stack, transfer, warp
from schemas.structured import match, transform
from schemas.topk import loss, mask, prune, route, values
from schemas.transport import (
    barycenter,
    divergence,
    exact,
    gromov,
    gromov_barycenter,
    line,
    low_rank,
    partial,
    refine,
    sinkhorn,
    sliced,
    unbalanced_gromov,
)

ROUTINES: dict[str, Routine] = {
    routine.name: routine
    for routine in (
        Routine("spatial.align", align.AlignRequest, align.AlignResult, align.EXAMPLE, version="3"),
        Routine("spatial.center", center.CenterRequest, center.CenterResult, center.EXAMPLE),
        Routine(
            "spatial.map_cells",
            map_cells.MapCellsRequest,
            map_cells.MapCellsResult,
            map_cells.EXAMPLE,
        ),
        Routine(
            "spatial.multiomics",
            multiomics.MultiomicsRequest,
            multiomics.MultiomicsResult,
            multiomics.EXAMPLE,
        ),
        Routine("spatial.stack", stack.StackRequest, stack.StackResult, stack.EXAMPLE),
        Routine(
            "spatial.transfer", transfer.TransferRequest, transfer.TransferResult, transfer.EXAMPLE
        ),
        Routine("spatial.warp", warp.WarpRequest, warp.WarpResult, warp.EXAMPLE),
        Routine("structured.match", match.MatchRequest, match.MatchResult, match.EXAMPLE),
        Routine(
            "structured.transform",
            transform.TransformRequest,
            transform.TransformResult,
            transform.EXAMPLE,
        ),
        Routine("topk.loss", loss.LossRequest, loss.LossResult, loss.EXAMPLE),
        Routine("topk.mask", mask.MaskRequest, mask.MaskResult, mask.EXAMPLE),
        Routine("topk.prune", prune.PruneRequest, prune.PruneResult, prune.EXAMPLE),
        Routine("topk.route", route.RouteRequest, route.RouteResult, route.EXAMPLE),
        Routine("topk.values", values.ValuesRequest, values.ValuesResult, values.EXAMPLE),
        Routine(
            "transport.barycenter",
            barycenter.BarycenterRequest,
            barycenter.BarycenterResult,
            barycenter.EXAMPLE,
        ),
        Routine(
            "transport.divergence",
            divergence.DivergenceRequest,
            divergence.DivergenceResult,
            divergence.EXAMPLE,
            version="2",
        ),
        Routine(
            "transport.exact", exact.ExactRequest, exact.ExactResult, exact.EXAMPLE, version="2"
        ),
        Routine("transport.gromov", gromov.GromovRequest, gromov.GromovResult, gromov.EXAMPLE),
        Routine(
            "transport.gromov_barycenter",
            gromov_barycenter.GromovBarycenterRequest,
            gromov_barycenter.GromovBarycenterResult,
            gromov_barycenter.EXAMPLE,
        ),
        Routine("transport.line", line.LineRequest, line.LineResult, line.EXAMPLE, version="2"),
        Routine(
            "transport.low_rank",
            low_rank.LowRankRequest,
            low_rank.LowRankResult,
            low_rank.EXAMPLE,
        ),
        Routine(
            "transport.partial",
            partial.PartialRequest,
            partial.PartialResult,
            partial.EXAMPLE,
            version="2",
        ),
        Routine("transport.refine", refine.RefineRequest, refine.RefineResult, refine.EXAMPLE),
        Routine(
            "transport.sinkhorn",
            sinkhorn.SinkhornRequest,
            sinkhorn.SinkhornResult,
            sinkhorn.EXAMPLE,
            version="2",
        ),
        Routine(
            "transport.sliced",
            sliced.SlicedRequest,
            sliced.SlicedResult,
            sliced.EXAMPLE,
        ),
        Routine(
            "transport.unbalanced_gromov",
            unbalanced_gromov.UnbalancedGromovRequest,
            unbalanced_gromov.UnbalancedGromovResult,
            unbalanced_gromov.EXAMPLE,
        ),
    )
}
