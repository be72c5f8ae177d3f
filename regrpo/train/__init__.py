"""sft and grpo around TRL's trainers.

Imports core and inputs.

rewards, classifiers              reward functions by name
custom_code                       the user's rewards: what they want, and a trial
trainers, groups                  what both stages set; groups of completions
generation                        completions by transformers; vLLM in a training, seeded
curriculum                        sft's examples, and their order
callbacks                         the history, dev accuracy, what ends a run
doctor, curves                    what is wrong with a run or ends it, and its picture
checkpoints                       complete ones, to resume from
saving                            model folders and LoRA adapters
launch, agent, worker, sharding   several processes, and how a model is spread
"""
