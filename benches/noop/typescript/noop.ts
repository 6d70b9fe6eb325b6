// A task whose result is its input, for `cargo xtask bench languages`.

import type { Payload } from 'keiko:plugin/types@0.1.0';

export const task = {
  run(_kind: string, input: Payload): Payload {
    return input;
  },
};
