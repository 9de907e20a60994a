"""How is it put right? One file per method, one shared reset engine, one shared penalty base, one
contract (attach, handle, state, detach), open to methods registered from outside through a base
class and the entry point group `supple.interventions`.
"""
