"""Print the OpenAPI document: `python -m api > docs/openapi.json`."""

import json

from api.main import build
from schemas.settings import Settings

print(json.dumps(build(Settings()).openapi(), indent=1, ensure_ascii=False))
