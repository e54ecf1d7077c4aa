"""Placeholder until the real one lands: keeps the entry points loadable."""

import json

import click

serializer = (json.dumps, json.loads, "application/x-celeriac", "utf-8")
commands = click.Group("celeriac")
