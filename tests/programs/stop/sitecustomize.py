"Make a command of this folder's environment do something after a step; Python imports this file when it starts."
import os, signal, sys

called = ' '.join(sys.argv)
if sys.argv[0].endswith('llmbook-pretrain') and 'cut' in called and '--resume' not in called:
    from llmbook.train.telemetry import Telemetry
    after_batch = Telemetry.after_batch

    def after_batch_and_stop(self):
        after_batch(self)
        if self.training and self.train_iter == int(os.environ['STOP_STEP']): exec(os.environ['STOP_HOW'])
    Telemetry.after_batch = after_batch_and_stop
