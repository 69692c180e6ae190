"""What is allowed and yet doubtful of a model, told when it is written and by dry runs."""

from sqlmodel.ext.asyncio.session import AsyncSession

from cortex_api.engines.base import ModelSpec
from cortex_api.models import endpoints, repository
from cortex_api.models.policy import policy_warnings


async def doubts(session: AsyncSession, spec: ModelSpec) -> list[str]:
    """Warnings about the model's servers and about the models that its policy names."""
    told = endpoints.warnings(spec)
    if spec.policy.fallbacks or spec.policy.splits:
        others = await repository.policies(session, except_id=spec.id)
        told += policy_warnings(spec.policy, (spec.served_model_name, *spec.aliases), others)
    return told
