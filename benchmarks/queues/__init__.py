"""How a producer talks to each kind of contender: one module for a library.

``base`` holds what they have in common; ``Contender.open()`` finds the class.
"""
