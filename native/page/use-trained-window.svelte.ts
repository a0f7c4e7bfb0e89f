/** The trained window of the active model, beside what its context holds. */

import { markPercent, type SelfExtendProps, windowSentence } from './props';
import { contextStatsStore, modelsStore, serverStore } from '$lib/stores';

export function useTrainedWindow() {
	const props = $derived.by((): SelfExtendProps | null => {
		void modelsStore.props.cacheVersion;

		const modelId = contextStatsStore.activeModelId;
		const own = modelId ? modelsStore.props.getModelProps(modelId) : null;

		return (own ?? serverStore.props)?.self_extend ?? null;
	});

	return {
		get mark() {
			return markPercent(props?.n_ctx_train ?? null, contextStatsStore.contextTotal);
		},
		get sentence() {
			return windowSentence(props, contextStatsStore.contextTotal, contextStatsStore.contextUsed);
		}
	};
}
