"""Many machines: Ray hands files to workers that hold one deblurrer each. Needs the extra ``ray``.

The process that was started plans the run, keeps the journal and reports; workers read, deblur and write.
"""
