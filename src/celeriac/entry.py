"""How a program that never imports celeriac finds us, once we are installed.

Celery and kombu have no entry points for transports or workers. Two that they do have are
loaded early enough to register the rest:

- ``kombu.serializers`` is loaded when :mod:`kombu.serialization` is imported, before any URL is
  looked at. :data:`serializer` is its entry; importing this module adds the ``sqlite`` transport
  to kombu's aliases. kombu is half imported at that moment, hence the few imports here.
- ``celery.commands`` is loaded by Celery's command line, before any worker starts. Its entry is
  in :mod:`celeriac.commands`, which makes the worker choose our pool and consumer.
"""

from __future__ import annotations

import json

from kombu.transport import TRANSPORT_ALIASES

TRANSPORT_ALIASES["sqlite"] = "celeriac.transport:Transport"

#: Encoder, decoder, content type and encoding, as :func:`kombu.serialization.register` takes
#: them. Plain JSON under a name of its own.
serializer = (json.dumps, json.loads, "application/x-celeriac+json", "utf-8")
